"""The table of checks, and the form of what each of them finds."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

State = Literal["ok", "warn", "fail", "unseen"]

#: ``cheap``: a round trip at most, asked by ``/health/ready`` and by every start. ``brief``: seconds. ``long``: reads
#: all there is, and is done on demand.
Cost = Literal["cheap", "brief", "long"]


class Check(msgspec.Struct, frozen=True):
    """One row of the table. ``within_s``: a check that has not answered by then was not looked at. ``fresh_ms``: what
    was found stands for this long, whoever asks; 0: it is asked each time."""

    what: str
    cost: Cost
    within_s: float
    fresh_ms: int = 0


#: A health check that hangs is a failed one.
_CHEAP_S: Final = 3.0

CHECKS: Final[dict[str, Check]] = {
    # --- cheap: /health/ready ---
    "redis": Check("Redis answers, layers loaded", "cheap", _CHEAP_S, 100),
    "redis_safe": Check("Redis keeps to memory", "cheap", _CHEAP_S, 30_000),
    # It costs a commit in the line in which confirmations wait.
    "ledger": Check("ledger takes writes", "cheap", _CHEAP_S, 2_000),
    # --- brief: chatd doctor ---
    "gateway": Check("gateway", "brief", 5.0),
    "certificate": Check("certificate", "brief", 5.0),
    "tls": Check("TLS as phones see it", "brief", 10.0),
    "redis_settings": Check("Redis's settings", "brief", 10.0),
    "redis_user": Check("Redis's user", "brief", 10.0),
    "seal_keys": Check("sealing keys", "brief", 10.0),
    "files": Check("private files", "brief", 5.0),
    "seed": Check("audit's seed", "brief", 5.0),
    "clock_kept": Check("clock kept by a time server", "brief", 5.0),
    "clock_redis": Check("clock beside Redis's", "brief", 10.0),
    "clock_ledger": Check("clock beside the ledger's", "brief", 10.0),
    "clock_ntp": Check("clock beside a time server's", "brief", 5.0),
    "disk": Check("room on the disk", "brief", 5.0),
    "memory": Check("memory reaches no disk", "brief", 5.0),
    "migrations": Check("ledger's shape", "brief", 10.0),
    "integrity": Check("ledger's integrity", "brief", 30.0),
    "audit": Check("audit's newest rows", "brief", 30.0),
    "model": Check("model's files", "brief", 60.0),
    # --- long: chatd doctor --deep ---
    "audit_all": Check("audit, all rows", "long", 3_600.0),
    "model_all": Check("model's files, read whole", "long", 3_600.0),
    "integrity_all": Check("ledger's integrity, all indexes", "long", 3_600.0),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has found. ``text``: settings, counts and times; never a secret nor a word of a patient's.
    ``do``: one line, empty where there is nothing to do."""

    check: str
    state: State
    text: str
    do: str = ""

    @property
    def what(self) -> str:
        return CHECKS[self.check].what


def ok(check: str, text: str, do: str = "") -> Finding:
    return Finding(check=check, state="ok", text=text, do=do)


def warn(check: str, text: str, do: str) -> Finding:
    return Finding(check=check, state="warn", text=text, do=do)


def fail(check: str, text: str, do: str) -> Finding:
    return Finding(check=check, state="fail", text=text, do=do)


def unseen(check: str, why: str, do: str = "") -> Finding:
    return Finding(check=check, state="unseen", text=why, do=do)
