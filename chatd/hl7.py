"""HL7 v2 messages applied: into the patient's layer, into alerts, and onto disk, before they are answered AA.

What was acknowledged must outlive a lost Redis, and no file of the registry knows of it: what messages have said of a
patient is kept sealed in ``hl7/`` of the data directory, one file per patient, and joined at every reload.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol
from zoneinfo import ZoneInfo

import msgspec
import structlog
from redis.exceptions import RedisError

from chatd import metrics
from chatd.alerts.model import Raise, Raised, Response
from chatd.clock import Clock
from chatd.ledger import LedgerUnavailable
from chatd.logs import error_name
from chatd.records import is_of_demo
from chatd.safety.triage import critical_results
from chatd.safety.words import number, pick, zone
from context.fhir_text import one_line
from context.hl7 import Header, Message, Problem, Refused, Rules, Verdict, answer, header_of, read, verdict_of
from context.hl7_files import HeardFiles
from context.hl7_heard import Heard, Hearing, NotHers, Owed, Told, Version, hear, joined
from context.layers import ChartRef, HospitalLayer, Observation, PatientLayer, Report
from context.store import ContextStore, PatientUnknown
from protocols.errors import ERRORS, ChatdError, RemoteProtocolError
from protocols.frames import AlertTarget

log = structlog.get_logger(__name__)

RAISED_BY: Final = "service:hl7"
CONFIG_NAME: Final = "hl7.json"
#: Results measured and sent longer ago than this ring nobody: they are history that is being caught up.
ALERTS_WITHIN: Final = timedelta(hours=48)
#: One message, from its last byte to its answer.
_HANDLE_S: Final = 30.0
_HEAL_S: Final = 2.0
#: Patients of lately are looked at again: a file import that ran at the same moment may have put an older layer.
_LATELY_S: Final = 600.0
_MAX_LATELY: Final = 10_000
_TEXT_CHARS: Final = 120
_ID = re.compile(r"[A-Za-z0-9._:\-]{1,64}")


class Hl7ConfigError(ChatdError):
    """``hl7.json`` cannot be used; the text names the field."""


class Config(Rules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``hl7.json`` of the data directory.

    senders: addresses and networks that may connect; empty: this machine alone. MLLP knows no passwords, so whoever may
    connect may write results. keep_days: what messages said of a patient is forgotten when none came for that long.
    """

    senders: tuple[str, ...] = ()
    keep_days: int = 90

    @classmethod
    def load(cls, data: Path, departments: Iterable[str]) -> Config:
        """The file of ``data``; the defaults without one.

        Raises:
            Hl7ConfigError: it cannot be used, or names a department that does not exist.
        """
        try:
            config = msgspec.json.decode((data / CONFIG_NAME).read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.MsgspecError) as error:
            raise Hl7ConfigError(f"{CONFIG_NAME}: {error}") from None
        known = set(departments)
        named = [*config.locations.values(), *([config.default_department] if config.default_department else [])]
        for department in named:
            if department not in known:
                raise Hl7ConfigError(f"{CONFIG_NAME}: no department {department!r}; known: {', '.join(sorted(known))}")
        if not 1 <= config.keep_days <= 3_660:
            raise Hl7ConfigError(f"{CONFIG_NAME}: keep_days must be between 1 and 3660")
        try:
            config.networks()
        except ValueError:
            raise Hl7ConfigError(f"{CONFIG_NAME}: senders must be addresses or networks") from None
        return config

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """``senders`` as networks; ValueError for what is none."""
        return tuple(ipaddress.ip_network(sender) for sender in self.senders or ("127.0.0.0/8", "::1"))


class AlertWay(Protocol):
    """What is needed of ``chatd.alerts.service.Alerts``."""

    def now(self) -> datetime: ...

    async def raise_(self, command: Raise, now: datetime) -> Raised: ...

    async def respond(self, response: Response, now: datetime) -> object: ...


# --- what is critical ---------------------------------------------------------------------------------------


def critical_text(heard: Heard, ref: ChartRef, hospital: HospitalLayer, now: datetime) -> str | None:
    """What an alert says about a result; None where it needs none.

    Critical is what the laboratory flags HH, LL or AA, and what lies beyond the call limits, however it is flagged.
    Nobody is called about a patient who has died, nor about results measured and sent more than 48 hours ago.
    """
    version = heard.versions.get(ref)
    if version is None or version.taken_back or heard.layer.deceased:
        return None
    if now - max(version.at or version.sent_at, version.sent_at) > ALERTS_WITHIN:
        return None
    item = _item(heard.layer, ref)
    if item is None or not (version.is_flagged_critical or _is_beyond_limits(heard.layer, item, hospital, now)):
        return None
    lang = hospital.language
    return f"{_shown(item, lang)} ({pick(lang, 'critical', 'crítico')}), {_clock(version, hospital)}"


def _is_beyond_limits(layer: PatientLayer, item: Observation | Report, hospital: HospitalLayer, now: datetime) -> bool:
    if isinstance(item, Report):
        return False
    # How old it is was decided above; the rule for answers would leave out a result of a clock that is ahead.
    undated = msgspec.structs.replace(item, as_of=None)
    alone = msgspec.structs.replace(layer, observations=(undated,))
    return bool(critical_results(alone, hospital, now))


def _item(layer: PatientLayer, ref: ChartRef) -> Observation | Report | None:
    items: list[Observation | Report] = [*layer.observations, *layer.reports]
    return next((item for item in items if item.ref == ref), None)


def _shown(item: Observation | Report, lang: str) -> str:
    """ "Potassium 6.9 mmol/L"; of a text its beginning."""
    if isinstance(item, Report):
        return one_line(f"{item.title}: {item.text}", _TEXT_CHARS)
    if item.value is None:
        return one_line(f"{item.name}: {item.text}", _TEXT_CHARS)
    value = f"{item.comparator}{' ' if item.comparator else ''}{number(item.value)}"
    unit = item.unit if item.unit is not None else pick(lang, "(unit missing)", "(sem unidade)")
    return one_line(f"{item.name} {value} {unit}".strip(), _TEXT_CHARS)


def _clock(version: Version, hospital: HospitalLayer) -> str:
    """When it was measured: the time of day where it was sent on the same day, else with the date.

    It depends on the message alone, so that the same message says the same again."""
    if version.at is None:
        return pick(hospital.language, "time not recorded", "hora não registada")
    local, suffix = zone(hospital.timezone)
    at, sent = version.at.astimezone(local), version.sent_at.astimezone(local)
    return f"{at:%H:%M}{suffix}" if at.date() == sent.date() else f"{at:%Y-%m-%d %H:%M}{suffix}"


def with_debts(hearing: Hearing, *, departments: Sequence[str], hospital: HospitalLayer, now: datetime) -> Heard:
    """The patient's state with all that alerts must say now, each once: new critical results, and those that are not
    critical any more, were corrected to another critical value, or were taken back.

    departments: whom a new critical result is told.
    """
    heard = hearing.heard
    lang = hospital.language
    judged = {ref: value for ref, value in heard.judged.items() if ref in heard.versions}
    told = dict(heard.told)
    owed = list(heard.owed)
    for ref in hearing.changed:
        if not ref.startswith("Observation/"):
            continue
        version = heard.versions[ref]
        # A value that comes back after another one is news: under its first key it would be its first, ended alert.
        sent = version.sent_at.isoformat()
        before = judged.get(ref)
        text = critical_text(heard, ref, hospital, now)
        if text is not None and before == version.fingerprint:
            continue  # the same value, by now final
        if text is None and before is None:
            continue
        # What nobody has heard yet needs no correction.
        owed = [debt for debt in owed if debt.ref != ref or debt.kind == "withdraw"]
        withdrawn = told.pop(ref, ())
        for alert in withdrawn:
            owed.append(
                Owed(
                    kind="withdraw",
                    key=_key("withdraw", alert.alert_id),
                    ref=ref,
                    department=alert.department,
                    alert_id=alert.alert_id,
                )
            )
        if text is not None:
            if withdrawn:
                text = f"{text}, {pick(lang, 'corrected', 'corrigido')}"
            judged[ref] = version.fingerprint
            where = tuple(dict.fromkeys((*(alert.department for alert in withdrawn), *departments)))
            for department in where:
                key = _key("critical", heard.layer.patient_id, ref, version.fingerprint, sent, department)
                owed.append(Owed(kind="critical", key=key, ref=ref, department=department, text=text))
        else:
            judged.pop(ref, None)
            for department in dict.fromkeys(alert.department for alert in withdrawn):
                key = _key("corrected", heard.layer.patient_id, ref, str(before), version.fingerprint, sent, department)
                text_now = _corrected_text(heard, ref, hospital)
                owed.append(Owed(kind="corrected", key=key, ref=ref, department=department, text=text_now))
    return msgspec.structs.replace(heard, judged=judged, told=told, owed=tuple(owed))


def _corrected_text(heard: Heard, ref: ChartRef, hospital: HospitalLayer) -> str:
    version = heard.versions[ref]
    lang = hospital.language
    item = None if version.taken_back else _item(heard.layer, ref)
    at = _clock(version, hospital)
    if item is None:
        name = one_line(version.name, _TEXT_CHARS)
        return pick(
            lang,
            f"Corrected: {name}, {at}: the laboratory has taken the critical result back",
            f"Corrigido: {name}, {at}: o laboratório retirou o resultado crítico",
        )
    shown = _shown(item, lang)
    return pick(
        lang,
        f"Corrected: {shown}, {at}: the critical value reported before was wrong",
        f"Corrigido: {shown}, {at}: o valor crítico comunicado antes estava errado",
    )


def _key(*parts: str) -> str:
    return f"hl7-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


# --- one message after the other ----------------------------------------------------------------------------


def on_broken_file(name: str) -> None:
    """Tell of a file that was set aside: results of this patient will be missing after the next reload."""
    metrics.HL7_FAULTS.labels("file").inc()
    log.error("hl7_file_broken", file=name)


class Intake:
    """Takes messages and answers them; one per installation.

    Messages about one patient are taken one after the other, about several side by side.
    """

    def __init__(
        self,
        *,
        store: ContextStore,
        files: HeardFiles,
        alerts: AlertWay,
        config: Config,
        hospital: HospitalLayer,
        departments: Sequence[str],
        clock: Clock,
        on_layer: Callable[[PatientLayer], Awaitable[object]] | None = None,
    ) -> None:
        """``on_layer``: told of each layer that was put, before the message is answered; what it raises is logged."""
        self._store = store
        self._on_layer = on_layer
        self._files = files
        self._alerts = alerts
        self._config = config
        self._hospital = hospital
        self._departments = tuple(departments)
        self._zone = ZoneInfo(hospital.timezone)
        self._clock = clock
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._lately: OrderedDict[str, int] = OrderedDict()
        self._generation: str | None = None

    async def handle(self, block: bytes) -> bytes:
        """The answer to one message; never raises but for cancellation.

        AA: applied, and every alert that it calls for is in the ledger. AE: something in it could not be taken; the
        rest was, if its patient is known. AR: not understood, or, with code 207, not possible now: to be sent again.
        """
        now, begun = self._clock.now(), time.perf_counter()
        header = header_of(block, self._config)
        verdict: Verdict
        problems: tuple[Problem, ...]
        try:
            async with asyncio.timeout(_HANDLE_S):
                problems = await self._take(block, now)
            verdict = verdict_of(problems)
        except Refused as refused:
            verdict, problems = refused.verdict, (refused.problem,)
        except (ChatdError, OSError, TimeoutError) as error:
            verdict, problems = "AR", (Problem(207, "MSH", text="not possible now; send it again later"),)
            log.warning("hl7_not_applied", control_id=_loggable(header.control_id), error=error_name(error))
        except Exception as error:
            # One message must never end the stream of all.
            verdict, problems = "AR", (Problem(207, "MSH", text="an error of the receiver"),)
            metrics.HL7_FAULTS.labels("error").inc()
            log.error("hl7_error", control_id=_loggable(header.control_id), error=error_name(error))
        return self._answered(header, verdict, problems, now, begun, len(block))

    def refuse_large(self, head: bytes, size_bytes: int) -> bytes:
        """The answer to a message of which only the beginning was kept, since it is longer than any may be."""
        now, begun = self._clock.now(), time.perf_counter()
        header = header_of(head, self._config)
        problems = (Problem(102, "MSH", text="the message is longer than is taken here"),)
        return self._answered(header, "AE", problems, now, begun, size_bytes)

    def _answered(
        self,
        header: Header,
        verdict: Verdict,
        problems: tuple[Problem, ...],
        now: datetime,
        begun: float,
        size_bytes: int,
    ) -> bytes:
        metrics.HL7_MESSAGES.labels(verdict).inc()
        log.info(
            "hl7_message",
            control_id=_loggable(header.control_id),
            kind=_loggable(f"{header.kind}-{header.event}"),
            verdict=verdict,
            problems=[f"{problem.code} {problem.place()}" for problem in problems[:10]],
            bytes=size_bytes,
            ms=round((time.perf_counter() - begun) * 1000, 1),
        )
        return answer(header, verdict, problems, now=now, control_id=secrets.token_hex(8))

    async def _take(self, block: bytes, now: datetime) -> tuple[Problem, ...]:
        message = read(block, self._config, now=now, zone=self._zone)
        async with self._lock(message.patient_id):
            before = await asyncio.to_thread(self._files.load, message.patient_id)
            known = await self._known(message.patient_id)
            here = self._department(message)
            departments = (here,) if here else () if known is None else known.departments
            if not departments and before is not None:
                departments = before.layer.departments
            if not departments:
                raise Refused("AE", Problem(103, "PV1", 1, 3, "a new patient, and this place is no known department"))
            try:
                hearing = hear(before, message, departments=departments, now=now, zone=self._zone)
                layer = joined(known, hearing.heard, now=now)
            except NotHers:
                place = Problem(204, "PID", 1, 3, "the record of this number is of somebody else")
                raise Refused("AE", place) from None
            # A department that the hospital has no more takes no alert: the message would be refused for ever, and
            # hold up all behind it.
            called = tuple(each for each in departments if each in self._departments) or departments
            heard = with_debts(hearing, departments=called, hospital=self._hospital, now=now)
            if before is None or msgspec.structs.replace(heard, heard_at=before.heard_at) != before:
                await asyncio.to_thread(self._files.save, heard)
            if known is None or known.version != layer.version:
                await self._put(layer)
            self._remember(message.patient_id)
            await self._pay(heard)
        return (*message.problems, *hearing.problems)

    def _department(self, message: Message) -> str | None:
        """The department of the message's place; None if it names none that is known."""
        found = self._config.locations.get(message.location)
        if found is None and message.location in self._departments:
            found = message.location
        return found or self._config.default_department

    async def _known(self, patient_id: str) -> PatientLayer | None:
        try:
            known = await self._store.patient(patient_id)
        except PatientUnknown:
            return None
        # Nothing invented is merged with what a hospital sends.
        return None if is_of_demo(known) else known

    async def _put(self, layer: PatientLayer) -> None:
        layer = await self._store.put_patient(layer)
        if self._on_layer is not None:
            try:
                await self._on_layer(layer)
            except (ChatdError, RedisError, OSError, TimeoutError) as error:
                # The record is right; that an answer was older than it could not be told.
                metrics.HL7_FAULTS.labels("stale").inc()
                log.warning("hl7_stale_not_told", error=error_name(error))

    # --- alerts ---

    async def _pay(self, heard: Heard) -> Heard:
        """Say what is owed, and remember what was said.

        Raises:
            LedgerUnavailable, RemoteProtocolError: something could not be said; it is owed further.
        """
        if not heard.owed:
            return heard
        now = self._alerts.now()
        told = dict(heard.told)
        left: list[Owed] = []
        failure: ChatdError | None = None
        # Cut short, what was said is said again under its key, and is the same alert.
        for debt in heard.owed:
            if isinstance(failure, LedgerUnavailable):
                left.append(debt)
                continue
            try:
                if debt.kind == "withdraw":
                    # Results of one patient that came in a storm share an alert: it stands while one of them does.
                    if not any(alert.alert_id == debt.alert_id for alerts in told.values() for alert in alerts):
                        await self._withdraw(debt, now)
                else:
                    raised = await self._alerts.raise_(self._command(debt, heard.layer.patient_id), now)
                    if debt.kind == "critical":
                        alert = Told(alert_id=raised.alert_id, department=debt.department)
                        told[debt.ref] = (*told.get(debt.ref, ()), alert)
                metrics.HL7_ALERTS.labels(debt.kind).inc()
            except (LedgerUnavailable, RemoteProtocolError) as error:
                failure = error
                left.append(debt)
                metrics.HL7_FAULTS.labels("alert").inc()
                log.error("hl7_alert_owed", kind=debt.kind, department=debt.department, error=error_name(error))
        heard = msgspec.structs.replace(heard, told=told, owed=tuple(left))
        await asyncio.to_thread(self._files.save, heard)
        if failure is not None:
            raise failure
        return heard

    def _command(self, debt: Owed, patient_id: str) -> Raise:
        is_critical = debt.kind == "critical"
        return Raise(
            key=debt.key,
            raised_by=RAISED_BY,
            department=debt.department,
            to=AlertTarget(department=debt.department),
            priority="critical" if is_critical else "high",
            content=debt.text,
            requires_action=is_critical,
            patient_id=patient_id,
        )

    async def _withdraw(self, debt: Owed, now: datetime) -> None:
        response = Response(
            key=debt.key,
            user_id=RAISED_BY,
            roles=(),
            department=debt.department,
            alert_id=debt.alert_id,
            answer="stand_down",
            reason=pick(self._hospital.language, "corrected by the laboratory", "corrigido pelo laboratório"),
        )
        try:
            await self._alerts.respond(response, now)
        except RemoteProtocolError as error:
            if ERRORS[error.code].retryable:
                raise
            # Somebody has closed it already, or retention has taken it. That it was wrong is told by its own alert.
            log.info("hl7_alert_was_closed", department=debt.department, code=error.code.value)

    # --- healing ---

    async def run(self) -> None:
        """Put again what Redis has lost or an import overtook, and say what is owed; ends by cancellation."""
        forgotten_at = -_HEAL_S
        while True:
            try:
                await self.heal()
                if time.monotonic() - forgotten_at > 3_600:
                    forgotten_at = time.monotonic()
                    before = self._clock.now() - timedelta(days=self._config.keep_days)
                    await asyncio.to_thread(self._files.forget, before)
            except (ChatdError, OSError, TimeoutError) as error:
                log.warning("hl7_not_healed", error=error_name(error))
            await asyncio.sleep(_HEAL_S)

    async def heal(self) -> None:
        """One look: at every patient after a reload of the layers, else at those of the last minutes."""
        generation = await self._store.generation()
        if generation is None:
            return
        if generation != self._generation:
            numbers = await asyncio.to_thread(lambda: [heard.layer.patient_id for heard in self._files.all()])
        else:
            oldest = self._clock.monotonic_ms() - int(_LATELY_S * 1000)
            while self._lately and next(iter(self._lately.values())) < oldest:
                self._lately.popitem(last=False)
            numbers = list(self._lately)
        failure: ChatdError | None = None
        for patient_id in numbers:
            async with self._lock(patient_id):
                heard = await asyncio.to_thread(self._files.load, patient_id)
                if heard is None:
                    continue
                known = await self._known(patient_id)
                try:
                    layer = joined(known, heard, now=self._clock.now())
                except NotHers:
                    metrics.HL7_FAULTS.labels("patient").inc()
                    log.error("hl7_patient_conflict", file=self._files.name(patient_id))
                else:
                    if known is None or known.version != layer.version:
                        await self._put(layer)
                if heard.owed:
                    self._remember(patient_id)
                    try:
                        await self._pay(heard)
                    except (LedgerUnavailable, RemoteProtocolError) as error:
                        failure = error
        self._generation = generation
        if failure is not None:
            raise failure

    def _remember(self, patient_id: str) -> None:
        self._lately[patient_id] = self._clock.monotonic_ms()
        self._lately.move_to_end(patient_id)
        while len(self._lately) > _MAX_LATELY:
            self._lately.popitem(last=False)

    def _lock(self, patient_id: str) -> asyncio.Lock:
        lock = self._locks.get(patient_id)
        if lock is None:
            lock = self._locks[patient_id] = asyncio.Lock()
        return lock


def _loggable(text: str) -> str:
    """An id of the sender's, if it has the form of one: a log is no place for anything else."""
    return text if _ID.fullmatch(text) else "?"
