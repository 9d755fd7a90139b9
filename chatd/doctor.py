"""``chatd doctor``: look at a running installation by the table of checks, and print what was found.

Each check ends within its bound; one that fails by itself is told as not looked at, and the others go on. Nothing is
changed: no key is made, no table, no row of the ledger.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chatd.audit.chain import FAULTS, Fault
from chatd.audit_place import checkpoint_file, keeper_of
from chatd.auditing import examine, sent_checkpoints
from chatd.checks import audit_tail, machine, redis_safety
from chatd.checks.table import CHECKS, Cost, Finding, State, fail, ok, unseen, warn
from chatd.clock import iso_ms
from chatd.inference.models import ModelError, read_pin, revision
from chatd.keys import KeySource
from chatd.ledger import LedgerUnavailable, Why, health
from chatd.ledger.migrate import HEAD
from chatd.places import Places
from chatd.readiness import Readiness
from context.seal import KeyRing, KeyRingError, Sealer, SealError

WELL: Final = 0
SICK: Final = 1

#: Where deploy/README.md puts it.
SITE: Final = Path("/etc/chatd/site.toml")
_REDIS_S: Final = 3.0
_MAX_BODY_BYTES: Final = 65_536
#: How a state looks. Not by its colour alone.
_LOOKS: Final[dict[State, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
    "unseen": ("not looked at", "dim"),
}


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller names. ``site``: the file of the front; None: that of deploy, where it is. ``url``: https://, as
    phones reach it. ``authority``: PEM of the root. ``ntp``: a time server inside the hospital."""

    site: Path | None = None
    url: str = ""
    authority: Path | None = None
    ntp: str = ""
    is_deep: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, as ``--json`` prints it."""

    at: str
    is_well: bool
    findings: tuple[Finding, ...]


# --- running them -------------------------------------------------------------------------------------------


def doctor(places: Places, where: Where, *, as_json: bool) -> int:
    """Look and print; exit status 0 where nothing fails, else 1."""
    findings = asyncio.run(look(places, where))
    is_well = all(each.state != "fail" for each in findings)
    if as_json:
        report = Report(at=iso_ms(datetime.now(UTC)), is_well=is_well, findings=tuple(findings))
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    else:
        _print(findings)
    return WELL if is_well else SICK


async def look(places: Places, where: Where) -> list[Finding]:
    """All findings, in the order of the table; those of ``long`` cost only where they are asked for."""
    patient = _Patient(places, where)
    costs: tuple[Cost, ...] = ("brief", "long") if where.is_deep else ("brief",)
    groups = [group for group in patient.groups if any(CHECKS[name].cost in costs for name in group[0])]
    found = await asyncio.gather(*(_bounded(names, ask) for names, ask in groups))
    order = list(CHECKS)
    return sorted((each for some in found for each in some), key=lambda each: order.index(each.check))


async def _bounded(names: Sequence[str], ask: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
    within_s = max(CHECKS[name].within_s for name in names)
    try:
        async with asyncio.timeout(within_s):
            found = await ask()
            told = {each.check for each in found}
            other = CHECKS[names[0]].what
            return [*found, *(unseen(name, f"see the row {other}") for name in names if name not in told)]
    except TimeoutError:
        why = f"no answer within {within_s:g} s"
    except LedgerUnavailable as error:
        why = f"the ledger does not answer: {error.why}"
    except (RedisError, OSError) as error:
        # Their texts may hold an address with its password.
        why = f"{type(error).__name__}"
    return [unseen(name, why, "see the other rows") for name in names]


class _Patient:
    """The installation that is looked at: which checks belong together, and how each of them is asked."""

    def __init__(self, places: Places, where: Where) -> None:
        self._places = places
        self._settings = places.settings
        self._where = where
        self._running = places.running()
        in_thread = partial(partial, asyncio.to_thread)
        self.groups: list[tuple[tuple[str, ...], Callable[[], Awaitable[Sequence[Finding]]]]] = [
            (("gateway",), in_thread(self._gateway)),
            (("certificate", "tls"), in_thread(self._front)),
            (("redis_settings", "redis_user", "clock_redis"), self._redis),
            (("seal_keys",), in_thread(self._seal_keys)),
            (("files", "seed"), in_thread(self._files)),
            (("clock_kept", "disk", "memory"), in_thread(self._machine)),
            (("clock_ntp",), in_thread(self._ntp)),
            (("migrations", "clock_ledger"), in_thread(self._shape)),
            (("integrity",), in_thread(partial(self._integrity, "integrity"))),
            (("audit",), in_thread(self._audit)),
            (("model",), in_thread(partial(self._model, "model"))),
            (("audit_all",), self._audit_all),
            (("model_all",), in_thread(partial(self._model, "model_all"))),
            (("integrity_all",), in_thread(partial(self._integrity, "integrity_all"))),
        ]

    # --- the gateway and the front ---

    def _gateway(self) -> list[Finding]:
        if self._running is None and not self._settings.uds:
            return [
                unseen("gateway", "no chatd up runs here, and no CHATD_UDS is set", "give --data-dir of a running one")
            ]
        try:
            ready = _ready_of(self._connection())
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            return [fail("gateway", "/health/ready does not answer", "look at its log")]
        bad = [name for name in ("redis", "context", "keys") if not getattr(ready, name)]
        poor = [name for name in ("ledger", "revocations", "redis_safe") if not getattr(ready, name)]
        poor += ["clock_stepped"] if ready.clock_stepped else []
        poor += ["draining"] if ready.draining else []
        poor += [f"audit {ready.audit}"] if ready.audit != "ok" else []
        text = f"ready: {str(ready.ready).lower()}, mode {ready.mode}, model {ready.model}"
        if bad or (not ready.ready and not ready.draining):
            return [fail("gateway", f"{text}; not well: {', '.join(bad + poor)}", "docs/operations.md, Health")]
        if poor:
            return [warn("gateway", f"{text}; not well: {', '.join(poor)}", "docs/operations.md, Health")]
        return [ok("gateway", text)]

    def _connection(self) -> http.client.HTTPConnection:
        within_s = CHECKS["gateway"].within_s
        if self._running is None:
            return _UnixConnection(self._settings.uds, within_s)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._running.host, self._running.host)  # noqa: S104 - not to listen
        return http.client.HTTPConnection(host, self._running.port, timeout=within_s)

    def _front(self) -> list[Finding]:
        return [self._certificate(), self._tls()]

    def _certificate(self) -> Finding:
        path = self._where.site or SITE
        if self._where.site is None and not path.exists():
            return unseen("certificate", f"there is no {path}", "give --site FILE, or --url https://HOST")
        try:
            site = tomllib.loads(path.read_text("utf-8"))
            name, file = str(site["authority"]).partition(":")[0], Path(site["certificate"])
        except OSError as error:
            return unseen("certificate", f"{path}: {error.strerror}", "run chatd doctor as an account that can read it")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError):
            return fail("certificate", f"{path} is not a site.toml", "deploy/nginx/site.toml is one")
        return machine.certificate_file(file, names=[name], authority=self._where.authority, now=datetime.now(UTC))

    def _tls(self) -> Finding:
        if not self._where.url:
            return unseen(
                "tls", "no address was given", "give --url https://HOST, and --ca FILE for your own authority"
            )
        parts = urlsplit(self._where.url)
        if parts.scheme != "https" or not parts.hostname:
            return fail("tls", "the address is not of https://", "give --url https://HOST")
        if self._where.authority is not None and not self._where.authority.is_file():
            return unseen("tls", "the file of the authority is not there", "give --ca FILE")
        return machine.served_certificate(
            parts.hostname, parts.port or 443, authority=self._where.authority, timeout_s=CHECKS["tls"].within_s
        )

    # --- Redis ---

    async def _redis(self) -> list[Finding]:
        url = self._places.redis_url
        if not url:
            nothing = "no chatd up runs here, and no CHATD_REDIS_URL is set"
            return [unseen("redis_settings", nothing, "give --redis URL")]
        try:
            facts = await redis_safety.look(url, timeout_s=_REDIS_S)
        except (RedisError, OSError, ValueError) as error:
            # Its text may hold the address with its password.
            why = f"Redis cannot be asked: {type(error).__name__}"
            return [fail("redis_settings", why, "is it running, and are user and password right?")]
        return [
            *redis_safety.findings(facts, is_overridden=self._settings.redis_unsafe),
            machine.clock_offset("clock_redis", "Redis's clock", facts.offset_ms, facts.offset_within_ms),
        ]

    # --- keys and files ---

    def _seal_keys(self) -> list[Finding]:
        source = self._places.key_source
        try:
            ring = source.load()
        except (KeyRingError, OSError) as error:
            why = str(error) if isinstance(error, KeyRingError) else f"{source.where}: {error.strerror}"
            return [fail("seal_keys", why, "bring back the copy from the safe before anything is started")]
        return [machine.seal_keys(_told(source), len(ring.ids), _age(source))]

    def _files(self) -> list[Finding]:
        data, settings = self._places.data, self._settings
        keys = data / "keys"
        source = self._places.key_source
        files = {"the key ring": Path(source.where)} if source.kind == "file" else {}
        jwt = Path(settings.jwt_key_file) if settings.jwt_key_file else keys / "jwt.key"
        files |= {"the keys' folder": keys, "the demo's token key": jwt}
        if self._places.ledger_url.startswith("sqlite:///"):
            files["the ledger"] = Path(self._places.ledger_url.removeprefix("sqlite:///"))
        if settings.audit_syslog_key_file:
            files["the key for syslog"] = Path(settings.audit_syslog_key_file)
        found = machine.seeds(keys.glob("audit-*.seed"), datetime.now(UTC))
        return [machine.private_files(files, data), found]

    # --- this machine ---

    def _machine(self) -> list[Finding]:
        pid = None if self._running is None else self._running.pid
        return [machine.clock_kept(), machine.disk(self._places.data), machine.memory(pid)]

    def _ntp(self) -> list[Finding]:
        host = self._where.ntp
        if not host:
            return [unseen("clock_ntp", "no time server was given", "give --ntp HOST of one inside the hospital")]
        try:
            offset_ms, within_ms = machine.ntp_offset(host, timeout_s=CHECKS["clock_ntp"].within_s - 1)
        except (OSError, ValueError) as error:
            why = str(error) if type(error) is ValueError else "it does not answer"
            return [unseen("clock_ntp", f"{host}: {why}", "is UDP port 123 open to it?")]
        return [machine.clock_offset("clock_ntp", host, offset_ms, within_ms)]

    # --- ledger and audit ---

    def _shape(self) -> list[Finding]:
        within_s = CHECKS["migrations"].within_s - 1
        began = datetime.now(UTC)
        try:
            seen = health.look(
                self._places.ledger_url, lambda tx: (health.clock(tx), health.revision(tx)), timeout_s=within_s
            )
        except LedgerUnavailable as error:
            return [_ledger_away("migrations", error)]
        if seen is None:
            return [unseen("migrations", "there is no ledger yet", "the first gateway makes it")]
        theirs, stands = seen
        took = datetime.now(UTC) - began
        if theirs is None:
            clock = ok("clock_ledger", "SQLite goes by this machine's clock")
        else:
            off_ms = (theirs - began - took / 2).total_seconds() * 1000
            clock = machine.clock_offset("clock_ledger", "the ledger's clock", off_ms, took.total_seconds() * 500)
        return [_stands(stands), clock]

    def _integrity(self, check: str) -> list[Finding]:
        within_s = CHECKS[check].within_s - 1
        try:
            whole = check == "integrity_all"
            seen = health.look(
                self._places.ledger_url, lambda tx: (health.integrity(tx, whole=whole),), timeout_s=within_s
            )
        except LedgerUnavailable as error:
            return [_ledger_away(check, error)]
        if seen is None:
            return [unseen(check, "there is no ledger yet", "the first gateway makes it")]
        if seen[0] is None:
            return [unseen(check, "PostgreSQL keeps its own checksums", "pg_amcheck, and data_checksums on")]
        if seen[0]:
            return [ok(check, "SQLite finds every page in order")]
        return [fail(check, "SQLite finds damage", "stop the gateways, restore the copy: deploy/README.md, Backup")]

    def _audit(self) -> list[Finding]:
        ring = self._ring()
        if ring is None:
            return [unseen("audit", "the sealing keys do not open", "see the row of the keys")]
        keeper = keeper_of(self._places, Sealer(ring))
        path = checkpoint_file(self._places)
        try:
            sent = sent_checkpoints([path] if path.exists() else [])
        except (OSError, ValueError):
            return [fail("audit", f"{path} is not a file of checkpoints", "docs/audit.md, Checkpoints")]
        try:
            seen = health.look(
                self._places.ledger_url,
                lambda tx: audit_tail.tail(tx, keeper, sent) if health.revision(tx) == HEAD else None,
                timeout_s=CHECKS["audit"].within_s - 1,
            )
        except LedgerUnavailable as error:
            return [_ledger_away("audit", error)]
        if seen is None:
            return [unseen("audit", "there is no chain yet", "it begins with the first row")]
        if seen.fault is not None:
            return [_broken("audit", seen.fault)]
        compared = (
            f"a checkpoint over {seen.checkpoint_size} agrees" if seen.checkpoint_size else "no checkpoint was compared"
        )
        text = f"the newest {seen.rows} of {seen.size} rows hold; {compared}"
        if not seen.checkpoint_size and seen.size:
            return [warn("audit", text, "set CHATD_AUDIT_CHECKPOINT_FILE on another machine's mount")]
        return [ok("audit", text)]

    async def _audit_all(self) -> list[Finding]:
        # A ledger of another shape would be brought forward by being opened.
        seen = await asyncio.to_thread(
            health.look, self._places.ledger_url, health.revision, timeout_s=CHECKS["migrations"].within_s
        )
        if seen != HEAD or self._ring() is None:
            return [unseen("audit_all", "no ledger of this version, or no keys", "see the other rows")]
        try:
            result = await examine(self._places)
        except (SealError, ValueError):
            return [fail("audit_all", "the seed or the checkpoints do not open", "chatd audit verify says which")]
        if result.fault is not None:
            return [_broken("audit_all", result.fault)]
        if not result.has_seed:
            return [ok("audit_all", f"{result.rows} rows hold, as far as can be told without the seed")]
        return [ok("audit_all", f"{result.rows} rows hold, by their keys")]

    def _ring(self) -> KeyRing | None:
        try:
            return self._places.key_source.load()
        except (KeyRingError, OSError):
            return None

    # --- the model ---

    def _model(self, check: str) -> list[Finding]:
        settings = self._settings
        engine = self._running.engine if settings.engine == "none" and self._running else settings.engine
        if engine in ("none", "scripted"):
            return [unseen(check, "no model is configured")]
        folder = Path(settings.model).expanduser()
        if not settings.model or not folder.is_dir():
            return [unseen(check, "CHATD_MODEL names no folder here", "run chatd doctor where the worker runs")]
        try:
            pin = read_pin(folder)
            if pin is None:
                return [warn(check, "its files are not pinned", f"chatd model check --pin {folder}")]
            found = revision(folder, read_all=check == "model_all")
        except ModelError as error:
            return [fail(check, str(error), f"chatd model check {folder}")]
        if found != pin.revision:
            return [
                fail(check, f"{found[:16]} is not what was pinned ({pin.revision[:16]})", f"chatd model check {folder}")
            ]
        how = "all bytes read" if check == "model_all" else "sizes and times unchanged since"
        return [ok(check, f"{found[:16]} as pinned; {how}")]


# --- single findings ----------------------------------------------------------------------------------------


def _told(source: KeySource) -> str:
    """Where the ring is, without anything of it."""
    return {
        "text": "CHATD_SEAL_KEYS",
        "file": source.where,
        "credential": f"credential {source.where}",
        "keychain": f"keychain entry {source.where}",
    }[source.kind]


def _age(source: KeySource) -> Any:
    if source.kind != "file":
        return None
    return datetime.now(UTC) - datetime.fromtimestamp(Path(source.where).stat().st_mtime, UTC)


def _stands(stands: str) -> Finding:
    if stands == HEAD:
        return ok("migrations", f"revision {stands}, this version's")
    if stands and stands < HEAD:
        return warn("migrations", f"revision {stands}, before {HEAD}", "the next start of a gateway brings it forward")
    told = f"revision {stands} is newer than {HEAD}" if stands else "its tables are none that chatd knows"
    return fail("migrations", told, "start the version that wrote it, or restore the copy")


def _ledger_away(check: str, error: LedgerUnavailable) -> Finding:
    if error.why is Why.TIMEOUT:
        return unseen(check, "it took too long", "chatd doctor --deep waits for an hour")
    if error.why is Why.FAILED and check.startswith(("integrity", "migrations")):
        return fail(check, "the ledger cannot be read", "stop the gateways, restore the copy: deploy/README.md, Backup")
    return unseen(check, f"the ledger does not answer: {error.why}", "look at the database")


def _broken(check: str, fault: Fault) -> Finding:
    at = f"row {fault.seq}: " if fault.seq else ""
    return fail(check, f"{at}{fault.why}: {FAULTS[fault.why]}", "chatd audit verify; keep the ledger as it is")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ready_of(connection: http.client.HTTPConnection) -> Readiness:
    try:
        connection.request("GET", "/health/ready")
        return msgspec.json.decode(connection.getresponse().read(_MAX_BODY_BYTES), type=Readiness)
    finally:
        connection.close()


def _print(findings: Iterable[Finding]) -> None:
    table = Table(title=None, show_lines=False, expand=False)
    for head in ("what", "state", "found", "to do"):
        table.add_column(head, overflow="fold")
    for each in findings:
        word, style = _LOOKS[each.state]
        table.add_row(each.what, Text(word, style), Text(each.text), Text(each.do))
    console = Console()
    if not console.is_terminal:
        # A file or a mail has no width to fit into.
        console = Console(width=200)
    console.print(table)
