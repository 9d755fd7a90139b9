"""``chatd alert``: raise an alert on the running ``chatd up``, as a machine of the hospital would."""

from __future__ import annotations

import http.client
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from chatd.gateway.auth import mint
from chatd.places import Places, RunFile
from protocols.frames import Reach

RAISED: Final = 0
NOT_RAISED: Final = 1
NOBODY: Final = 3
#: The user of the token: alerts show it as their sender.
SENDER: Final = "service:chatd-alert"
_TTL_S: Final = 60
#: A gateway that is being started again is back within seconds. The same key makes every try the same alert.
_TRIES: Final = 5
_PAUSE_S: Final = 1.0
#: The ledger answers within 2 s, or refuses.
_WAIT_S: Final = 10.0


class _Raised(msgspec.Struct, frozen=True):
    alert_id: str
    alert_seq: int
    reach: Reach


class _Refusal(msgspec.Struct, frozen=True):
    message: str = ""
    detail: str | None = None


def raise_alert(places: Places, department: str, body: Mapping[str, Any]) -> int:
    """Raise an alert, print whom it reaches, and return the exit status."""
    running = places.running()
    if running is None:
        return _fail(f"no chatd up is running on {places.data}; nobody was alerted")
    settings = places.settings
    token = mint(
        places.jwt_secret(),
        user_id=SENDER,
        departments=(department,),
        roles=("service",),
        ttl_s=_TTL_S,
        now=datetime.now(UTC),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
    )
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Idempotency-Key": f"cli-{secrets.token_hex(16)}",
    }
    path = f"/v1/departments/{quote(department, safe='')}/alerts"
    status, raw = 0, b""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            status, raw = _post(running, path, msgspec.json.encode(body), headers)
        except OSError:
            continue
        if status not in (429, 503):
            break
    if status == 0:
        return _fail("the gateway does not answer; it is not known whether anybody was alerted")
    try:
        if status == 201:
            return _tell(msgspec.json.decode(raw, type=_Raised))
        refusal = msgspec.json.decode(raw, type=_Refusal)
    except msgspec.DecodeError:
        return _fail(f"the gateway answered with HTTP {status}; it is not known whether anybody was alerted")
    if status == 401:
        return _fail("the gateway does not take tokens of this data directory's key; nobody was alerted")
    return _fail(f"{refusal.message}{f' ({refusal.detail})' if refusal.detail else ''} Nobody was alerted.")


def _post(running: RunFile, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(running.host, running.host)  # noqa: S104 - not to listen on
    line = http.client.HTTPConnection(host, running.port, timeout=_WAIT_S)
    try:
        line.request("POST", path, body=body, headers=headers)
        answer = line.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(type(error).__name__) from error
    finally:
        line.close()


def _tell(raised: _Raised) -> int:
    reach = raised.reach
    print(f"raised {raised.alert_id} as number {raised.alert_seq}")
    for words, users in (
        ("online", reach.online),
        ("by push", reach.push),
        ("unreachable", reach.unreachable),
        ("covered", tuple(f"{user} by {delegate}" for user, delegate in reach.covered.items())),
    ):
        if users:
            print(f"{words}: {', '.join(users)}")
    if not reach.is_whole:
        print("who else can be reached is not known: Redis does not answer")
    if reach.online or reach.push:
        return RAISED
    print("nobody can be reached now; it waits for the phones that come", file=sys.stderr)
    return NOBODY


def _fail(text: str) -> int:
    print(f"chatd alert: {text}", file=sys.stderr)
    return NOT_RAISED
