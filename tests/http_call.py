"""One HTTP request as it stands: the path is sent byte for byte, nothing is followed, retried or decoded."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

#: No answer of a healthy server takes this long; a ledger that is away is given up after 2 s.
WAIT_S = 20.0


class Answer(NamedTuple):
    """What came back; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(
    url: str, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request to the server of ``url`` and return its whole answer; it blocks the caller."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)
    try:
        line.request(method, path, body=body, headers=dict(headers or {}))
        answer = line.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        line.close()
