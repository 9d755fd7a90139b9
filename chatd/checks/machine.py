"""What is looked at on this machine: certificates, private files, clocks, room, memory; plain facts to findings."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from chatd.checks.table import Finding, fail, ok, unseen, warn
from chatd.clock import is_synchronised
from context.seal import is_private

# --- certificates -------------------------------------------------------------------------------------------

#: As deploy/systemd/chatd-certificate.service has it: a hospital's authority takes weeks.
DAYS_LEFT: Final = 30
_MAX_CHAIN_BYTES: Final = 262_144
_RENEW: Final = "have it signed anew, put it in place, nginx -t, systemctl reload nginx"


def certificate_file(path: Path, *, names: Sequence[str], authority: Path | None, now: datetime) -> Finding:
    """The chain of a PEM file: its days, its names, and whether each certificate is signed by the next one.

    Args:
        names: Host names that it must be for.
        authority: PEM of the root, where it is at hand: the last of the chain must be signed by it, or be it.
    """
    try:
        chain = _certificates(path)
        roots = [] if authority is None else _certificates(authority)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it holds no certificate"
        return unseen("certificate", f"{path}: {why}", "run chatd doctor as an account that can read it")
    return certificate("certificate", str(path), chain, names=names, roots=roots, now=now)


def certificate(
    check: str,
    where: str,
    chain: Sequence[x509.Certificate],
    *,
    names: Sequence[str],
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> Finding:
    """What a chain says, own certificate first."""
    own = chain[0]
    left = own.not_valid_after_utc - now
    days = left // timedelta(days=1)
    told = f"{where}: {days} days left, until {own.not_valid_after_utc:%Y-%m-%d}"
    for each in chain:
        if each.not_valid_before_utc > now:
            return fail(check, f"{told}; not valid before {each.not_valid_before_utc:%Y-%m-%d %H:%M}", "look at clocks")
    first_end = min(each.not_valid_after_utc for each in chain)
    if first_end <= now:
        return fail(check, f"{told}; one of the chain has run out", _RENEW)
    for lower, upper in itertools.pairwise(chain):
        if not _is_signed(lower, upper):
            return fail(check, f"{told}; the chain is not in order", "own certificate first, then its intermediates")
    if roots and not any(_is_signed(chain[-1], root) or chain[-1] == root for root in roots):
        return fail(check, f"{told}; the chain does not lead to the authority", "append the missing intermediates")
    missing = [name for name in names if not _is_for(own, name)]
    if missing:
        return fail(check, f"{told}; it is not for {', '.join(missing)}", "have it signed for this name")
    if first_end - now < timedelta(days=DAYS_LEFT):
        return warn(check, told, _RENEW)
    return ok(check, f"{told}; {len(chain)} in the chain")


def served_certificate(host: str, port: int, *, authority: Path | None, timeout_s: float) -> Finding:
    """Connect as a phone does: which TLS, whether the chain leads to a trusted root, and its days."""
    context = ssl.create_default_context(cafile=None if authority is None else str(authority))
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as line,
            context.wrap_socket(line, server_hostname=host) as secured,
        ):
            version, raw = secured.version(), secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        return fail("tls", f"{host}:{port}: not trusted: {error.verify_message}", "give --ca FILE, or mend the chain")
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        return fail("tls", f"{host}:{port}: no connection: {why}", "is nginx running, and does it listen there?")
    own = x509.load_der_x509_certificate(raw or b"")
    found = certificate("tls", f"{host}:{port}, {version}", [own], names=[host], roots=[], now=datetime.now(UTC))
    if version != "TLSv1.3" and found.state != "fail":
        return fail("tls", f"{host}:{port} speaks {version}", "deploy/nginx speaks TLS 1.3 alone")
    return found


def _certificates(path: Path) -> list[x509.Certificate]:
    with path.open("rb") as file:
        return x509.load_pem_x509_certificates(file.read(_MAX_CHAIN_BYTES))


def _is_signed(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_for(own: x509.Certificate, name: str) -> bool:
    try:
        said = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    hosts = {each.lower() for each in said.get_values_for_type(x509.DNSName)}
    hosts |= {str(each) for each in said.get_values_for_type(x509.IPAddress)}
    wild = "*." + name.lower().partition(".")[2]
    return name.lower() in hosts or wild in hosts


# --- private files ------------------------------------------------------------------------------------------


def private_files(files: Mapping[str, Path], folder: Path) -> Finding:
    """Whether what must be one account's alone is so: the data directory and each file that is there."""
    shared, seen = [], []
    for name, path in {"the data directory": folder, **files}.items():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError:
            return unseen("files", f"{name} cannot be looked at", "run chatd doctor as chatd's own account")
        seen.append(name)
        if not is_private(status):
            shared.append(f"{name} ({stat.S_IMODE(status.st_mode):04o})")
    if not seen:
        return unseen("files", f"there is no {folder}", "give --data-dir, or CHATD_DATA_DIR")
    if shared:
        return fail("files", f"others may use {', '.join(shared)}", "chmod go= them; a key that others read is changed")
    return ok("files", f"{len(seen)} places are for their owner alone")


def seeds(found: Iterable[Path], now: datetime) -> Finding:
    """Whether the audit's first key still lies beside the ring."""
    there = sorted(found)
    if not there:
        return ok("seed", "no seed of the audit lies on this machine")
    days = max((now - datetime.fromtimestamp(path.stat().st_mtime, UTC)).days for path in there)
    return warn(
        "seed",
        f"{', '.join(path.name for path in there)}: here for {days} days",
        "take it to the auditor: with it, whoever owns this machine could write all rows anew",
    )


# --- clocks -------------------------------------------------------------------------------------------------

#: Tokens are judged by the wall clock to the second.
OFF_MS: Final = 2_000
#: From here on chatd itself takes a clock for one that was set (``clock.STEP``).
WRONG_MS: Final = 60_000
_KEPT: Final = "keep both by the hospital's time server (chrony)"
_NTP_PORT: Final = 123
_NTP_BYTES: Final = 48
#: Seconds from 1900 to 1970. Source: RFC 5905
_NTP_EPOCH_S: Final = 2_208_988_800
_NTP_SERVER_MODE: Final = 4
_NTP_MAX_STRATUM: Final = 15


def clock_offset(check: str, who: str, offset_ms: float, within_ms: float) -> Finding:
    """Another clock less this machine's, known within ``within_ms``."""
    # What the reading took may be all of the difference.
    sure_ms = max(0.0, abs(offset_ms) - within_ms)
    text = f"{who} is {offset_ms / 1000:+.3f} s off, within {within_ms / 1000:.3f} s"
    if sure_ms >= WRONG_MS:
        return fail(check, text, _KEPT)
    return warn(check, text, _KEPT) if sure_ms >= OFF_MS else ok(check, text)


def clock_kept() -> Finding:
    """Whether the kernel knows that a time server keeps this machine's clock."""
    if not sys.platform.startswith("linux"):
        return unseen("clock_kept", "this system does not tell", "look at its time settings, or give --ntp HOST")
    if is_synchronised():
        return ok("clock_kept", "yes, as the kernel says")
    return warn("clock_kept", "the kernel knows of no time server", "start chrony with the hospital's time server")


def ntp_offset(host: str, *, timeout_s: float) -> tuple[float, float]:
    """The clock of a time server less this machine's, and within what: milliseconds, by one SNTP request (RFC 5905).

    Raises:
        OSError: no answer in time; ValueError: what came is no time.
    """
    mark = secrets.token_bytes(8)
    request = bytes((0x23,)) + bytes(39) + mark  # version 4, client; the mark comes back, the time does not leave
    with socket.socket(socket.getaddrinfo(host, _NTP_PORT, type=socket.SOCK_DGRAM)[0][0], socket.SOCK_DGRAM) as line:
        line.settimeout(timeout_s)
        line.connect((host, _NTP_PORT))
        wall, began = time.time(), time.monotonic()
        line.send(request)
        answer = line.recv(512)
        took_s = time.monotonic() - began
    return read_ntp(answer, mark=mark, sent_s=wall, took_s=took_s)


def read_ntp(answer: bytes, *, mark: bytes, sent_s: float, took_s: float) -> tuple[float, float]:
    """``ntp_offset`` of an answer. Raises ValueError: it is not a server's, not to this request, or it has no time."""
    if len(answer) < _NTP_BYTES or answer[0] & 7 != _NTP_SERVER_MODE or answer[24:32] != mark:
        raise ValueError("not the answer of a time server")
    if answer[0] >> 6 == 3 or not 1 <= answer[1] <= _NTP_MAX_STRATUM:
        raise ValueError("the time server has no time itself")
    received, sent = (_ntp_s(answer[at : at + 8]) for at in (32, 40))
    offset_s = ((received - sent_s) + (sent - sent_s - took_s)) / 2
    return offset_s * 1000, max(0.0, took_s - (sent - received)) * 500


def _ntp_s(raw: bytes) -> float:
    whole, part = (int.from_bytes(raw[at : at + 4]) for at in (0, 4))
    # The counter begins anew in 2036; what has no high bit is taken for after that. Source: RFC 4330, section 3
    era = 0 if whole & 0x80000000 else 1 << 32
    return float(whole + era - _NTP_EPOCH_S) + part / (1 << 32)


# --- room and memory ----------------------------------------------------------------------------------------

#: Alerts, actions and audit of months; below the second the ledger soon takes nothing.
LOW_BYTES: Final = 2 * 1024**3
LITTLE_BYTES: Final = 256 * 1024**2
_LOW_PART: Final = 0.10


def disk(folder: Path) -> Finding:
    """Room where the ledger, the audit's file and the keys are."""
    try:
        total, _, free = shutil.disk_usage(folder)
        is_read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as error:
        return unseen("disk", f"{folder}: {error.strerror}", "give --data-dir, or CHATD_DATA_DIR")
    return room(str(folder), free, total, is_read_only=is_read_only)


def room(where: str, free: int, total: int, *, is_read_only: bool) -> Finding:
    text = f"{where}: {free / 1024**3:.1f} GiB of {total / 1024**3:.1f} GiB free"
    if is_read_only:
        return fail("disk", f"{where} is mounted read-only", "look at the kernel's log: a disk may be failing")
    if free < LITTLE_BYTES:
        return fail("disk", text, "make room: without it alerts and actions are refused")
    if free < LOW_BYTES or free < total * _LOW_PART:
        return warn("disk", text, "make room, or move the ledger")
    return ok("disk", text)


def memory(pid: int | None, proc: Path = Path("/proc")) -> Finding:
    """Whether swap or a core file could bring to a disk what is in memory. ``pid``: a process of chatd, or None."""
    try:
        swaps = (proc / "swaps").read_text().splitlines()[1:]
    except OSError:
        return unseen("memory", "this system does not tell", "encrypt swap; whole-disk encryption covers both")
    dumped = False
    if pid is not None:
        try:
            limits = (proc / str(pid) / "limits").read_text()
        except OSError:
            return unseen("memory", f"process {pid} cannot be looked at", "run chatd doctor as chatd's own account")
        dumped = any(line.startswith("Max core file size") and line.split()[4] != "0" for line in limits.splitlines())
    open_swaps = [line.split()[0] for line in swaps if not line.startswith(("/dev/zram", "/dev/dm-", "/dev/mapper/"))]
    if dumped:
        return fail("memory", f"process {pid} may write a core file", "start it by chatd up or deploy/systemd")
    if open_swaps:
        return warn(
            "memory", f"swap on {', '.join(open_swaps)}", "swapoff, or encrypt it; MemorySwapMax=0 in the units"
        )
    return ok("memory", "no swap that is a plain disk" + ("" if pid is None else f", no core file of process {pid}"))


# --- keys ---------------------------------------------------------------------------------------------------

#: 2**32 records under one key at a thousand a second. Source: context/seal.py
KEY_DAYS: Final = 49


def seal_keys(how: str, count: int, age: timedelta | None) -> Finding:
    """The ring, which opens; ``age``: since its file was written, where there is one."""
    text = f"{how}: {count} keys"
    if age is None:
        return ok("seal_keys", text, "rotate monthly")
    text += f", written {age.days} days ago"
    if age > timedelta(days=KEY_DAYS):
        return warn("seal_keys", text, "add a key: docs/context.md, Sealing")
    return ok("seal_keys", text)
