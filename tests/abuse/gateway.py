"""The gateway under abuse, seen from outside: its process, its memory, its files, and tokens for whoever is needed."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from chatd.gateway.auth import mint
from tests.http_call import call
from tests.server import Hospital

#: The abuse is not of the limit of questions, which has cases of its own.
ENV = {
    "CHATD_MESSAGES_PER_MINUTE": "1000000",
    "CHATD_ALERT_RAISES_PER_MINUTE": "1000000",
    "CHATD_DRAIN_SPREAD_S": "0.1",
}


def gateway_pid(place: Hospital) -> int:
    """The one ``chatd serve`` under this ``chatd up``."""
    up = place.up.process.pid
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(each.read_text().rpartition(")")[2].split()[1])
            line = (each.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == up and b"serve" in line:
            found.append(int(each.parent.name))
    (pid,) = found
    return pid


def rss_bytes(pid: int) -> int:
    """Resident memory now."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def cpu_s(pid: int) -> float:
    """Processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def closes(place: Hospital) -> dict[str, float]:
    """How many connections the gateway has closed with each code."""
    words = call(place.url, "/metrics").body.decode()
    return {code: float(count) for code, count in re.findall(r'chatd_closes_total\{code="(\d+)"\} (\S+)', words)}


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def secret_of(place: Hospital) -> bytes:
    """The demo's token key."""
    return (place.data / "keys" / "jwt.key").read_text().strip().encode()


def token_for(place: Hospital, user: str, department: str, role: str = "physician") -> str:
    """A token of anybody, made here: a process for each would take longer than what is tested."""
    return mint(
        secret_of(place), user_id=user, departments=(department,), roles=(role,), ttl_s=3_600, now=datetime.now(UTC)
    )


def faults_in(log: str) -> list[str]:
    """Lines that a log must not have: tracebacks, failed connections, what a library complained of.

    A ledger that was late on a crowded machine is no fault of what was sent.
    """
    words = ("Traceback", "connection_failed", "background_task_failed", "library_error", "Fatal error")
    found = [line for line in log.splitlines() if any(word in line for word in words)]
    return [line for line in found if '"LedgerUnavailable"' not in line]
