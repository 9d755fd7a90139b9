"""``chatd alert``: raise an alert on the running ``chatd up``, as a machine of the hospital would."""

from __future__ import annotations

import http.client
import re
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from chatd.gateway.auth import MAX_TOKEN_BYTES, mint
from chatd.places import Places
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
_TOKEN: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


class Raised(msgspec.Struct, frozen=True):
    """What the gateway says when the ledger has the alert."""

    alert_id: str
    alert_seq: int
    reach: Reach


class _Refusal(msgspec.Struct, frozen=True):
    message: str = ""
    detail: str | None = None


class NotRaised(Exception):
    """Nobody was alerted, or that is not known; the text says which."""


class Line:
    """The way to the gateway of the ``chatd up`` on a data directory, as a machine that may call one department."""

    def __init__(
        self, places: Places, department: str, *, sender: str, token: str | None = None, ttl_s: int = _TTL_S
    ) -> None:
        """``token``: one of the identity provider; None: one is made, as ``sender``, with the installation's own key.

        Raises NotRaised where no ``chatd up`` is running.
        """
        running = places.running()
        if running is None:
            raise NotRaised(f"no chatd up is running on {places.data}; nobody was alerted")
        settings = places.settings
        token = token or mint(
            places.jwt_secret(),
            user_id=sender,
            departments=(department,),
            roles=("service",),
            ttl_s=ttl_s,
            now=datetime.now(UTC),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
        self._department = department
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(running.host, running.host)  # noqa: S104 - not to listen
        self._port = running.port
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None, *, key: str = "", tries: int = _TRIES) -> tuple[int, bytes]:
        """Status and body of the answer; 0 where none came. What may pass is tried again, a second apart."""
        headers = {**self._headers, **({"Idempotency-Key": key} if key else {})}
        raw = b"" if body is None else msgspec.json.encode(body)
        status, answer = 0, b""
        for attempt in range(tries):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                status, answer = self._once(method, path, raw, headers)
            except OSError:
                continue
            if status not in (429, 503):
                break
        return status, answer

    def raise_alert(self, body: Mapping[str, Any], *, key: str) -> Raised:
        """Raise an alert in the department. Raises NotRaised."""
        path = f"/v1/departments/{quote(self._department, safe='')}/alerts"
        status, raw = self.ask("POST", path, body, key=key)
        if status == 0:
            raise NotRaised("the gateway does not answer; it is not known whether anybody was alerted")
        try:
            if status == 201:
                return msgspec.json.decode(raw, type=Raised)
            refusal = msgspec.json.decode(raw, type=_Refusal)
        except msgspec.DecodeError:
            raise NotRaised(
                f"the gateway answered with HTTP {status}; it is not known whether anybody was alerted"
            ) from None
        if status == 401:
            raise NotRaised("the gateway does not take this token (see --token-file); nobody was alerted")
        raise NotRaised(f"{refusal.message}{f' ({refusal.detail})' if refusal.detail else ''} Nobody was alerted.")

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_WAIT_S)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(type(error).__name__) from error
        finally:
            connection.close()


def new_key() -> str:
    """An idempotency key of the command line."""
    return f"cli-{secrets.token_hex(16)}"


def read_token(path: Path | None) -> str | None:
    """The token in a file, ``-`` for standard input; it is never an argument, which every process could read.

    Raises ValueError: what is there is no token. OSError.
    """
    if path is None:
        return None
    raw = sys.stdin.read(MAX_TOKEN_BYTES + 2) if path == Path("-") else path.read_text("ascii", "replace")
    token = raw.strip()
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"{path}: this is no token")
    return token


def raise_alert(places: Places, department: str, body: Mapping[str, Any], *, token: str | None = None) -> int:
    """Raise an alert, print whom it reaches, and return the exit status."""
    try:
        return _tell(Line(places, department, sender=SENDER, token=token).raise_alert(body, key=new_key()))
    except NotRaised as error:
        print(f"chatd alert: {error}", file=sys.stderr)
        return NOT_RAISED


def _tell(raised: Raised) -> int:
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
