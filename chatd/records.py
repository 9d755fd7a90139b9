"""Keeps the layers in Redis: loads them from their sources at start, and again whenever Redis has lost them."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import demo, metrics
from chatd.actions.catalogue import catalogue_of
from chatd.clock import Clock
from chatd.logs import error_name
from chatd.places import Places
from context.feeds import Feeds
from context.fhir import Importer
from context.hl7_files import HeardFiles
from context.layers import DepartmentLayer, DoctorLayer, HospitalLayer, PatientLayer
from context.seal import Sealer
from context.store import ContextStore, StoreError
from protocols.errors import ChatdError

log = structlog.get_logger(__name__)

#: How often a node looks whether the layers are still there.
_LOOK_S = 0.5
#: One node loads; another takes over when it has not finished by then.
_LOADING_LEASE_MS = 60_000
_LOADING_KEY = "chatd:loading"
_UNNAMED = "Hospital"
#: Among a demo patient's identifiers, so that nothing invented is ever merged into an imported record.
DEMO_MARK = "urn:chatd:demo"
#: The demo is always "today"; vital signs older than a day would not be scored.
_DEMO_DAY = timedelta(hours=12)


class HospitalFileError(ChatdError):
    """``hospital.json`` of the data directory cannot be used; the text names the field."""


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation says of itself, beside its patients: ``hospital.json`` in the data directory."""

    hospital: HospitalLayer
    departments: tuple[DepartmentLayer, ...]
    staff: tuple[DoctorLayer, ...] = ()


def configured(data: Path, *, is_demo: bool, now: datetime) -> Configured:
    """The hospital, its departments with their catalogues, and its staff.

    From ``hospital.json`` in the data directory if there is one. Else the demo, if ``is_demo``; else the four
    departments that chatd comes with, no staff, and the default call limits of ``chatd.safety``.

    Raises:
        HospitalFileError: the file is there and cannot be used; nothing is guessed in its place.
    """
    path = data / "hospital.json"
    if path.exists():
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Configured)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise HospitalFileError(f"hospital.json: {error}") from None
    else:
        built_in = demo.load(now)
        found = Configured(
            # Nothing of the demo's, least of all its call limits, may pass for a real hospital's.
            hospital=built_in.hospital if is_demo else HospitalLayer(name=_UNNAMED, as_of=now),
            departments=built_in.departments,
            staff=built_in.doctors if is_demo else (),
        )
    departments = tuple(
        d if d.actions else msgspec.structs.replace(d, actions=catalogue_of(d.department_id)) for d in found.departments
    )
    return msgspec.structs.replace(found, departments=departments)


class ForAll:
    """A store in which a patient of no department is every department's: imported without ``--department``."""

    def __init__(self, store: ContextStore, departments: tuple[str, ...]) -> None:
        self._store = store
        self._departments = departments

    async def put_patient(self, layer: PatientLayer) -> PatientLayer:
        if not layer.departments:
            layer = msgspec.structs.replace(layer, departments=self._departments)
        return await self._store.put_patient(layer)


class RecordKeeper:
    """Loads all layers of an installation into Redis; ``run`` does it whenever they are gone."""

    def __init__(self, store: ContextStore, redis: Redis, places: Places, *, demo: bool, clock: Clock) -> None:
        self._store = store
        self._redis = redis
        self._places = places
        self._demo = demo
        self._clock = clock
        self._started_at = clock.now()

    async def run(self) -> None:
        """Look and load until cancelled; a fault is logged and tried again."""
        while True:
            try:
                loaded = await self._store.is_loaded()
                metrics.CONTEXT_LOADED.set(int(loaded))
                if not loaded:
                    await self._load_alone()
            except (StoreError, RedisError, OSError, TimeoutError, ChatdError) as error:
                metrics.CONTEXT_LOADED.set(0)
                log.warning("layers_not_loaded", error=error_name(error))
            await asyncio.sleep(_LOOK_S)

    async def _load_alone(self) -> None:
        """Load, unless another node is at it."""
        mine = secrets.token_hex(8)
        if not await self._redis.set(_LOADING_KEY, mine, nx=True, px=_LOADING_LEASE_MS):
            return
        try:
            await self.load()
        finally:
            # A lease that has run out may be another node's by now.
            if await self._redis.get(_LOADING_KEY) == mine.encode():
                await self._redis.delete(_LOADING_KEY)

    async def load(self) -> None:
        """Put every layer into Redis and mark them loaded; twice leaves the same layers.

        Raises:
            LoadLost: Redis was restarted, emptied or replaced meanwhile; begin again.
        """
        now = self._clock.now()
        found = configured(self._places.data, is_demo=self._demo, now=now)
        generation = secrets.token_hex(8)
        await self._store.begin_load(generation)
        await self._store.put_hospital(found.hospital)
        for department in found.departments:
            await self._store.put_department(department)
        for doctor in found.staff:
            await self._store.put_doctor(doctor)
        patients = 0
        if self._demo:
            zone = ZoneInfo(found.hospital.timezone)
            for layer in await asyncio.to_thread(demo_patients, self._demo_moment(now), zone):
                await self._store.put_patient(layer)
                patients += 1
        everybody = tuple(department.department_id for department in found.departments)
        feeds = Feeds(self._places.data)
        files = HeardFiles(self._places.data, Sealer(self._places.key_ring()))
        heard = await asyncio.to_thread(lambda: tuple(files.all()))
        target = ForAll(self._store, everybody)
        reload = await feeds.reload(target, now, zone=ZoneInfo(found.hospital.timezone), heard=heard)
        for problem in reload.problems:
            # A path may be named after a patient; the registry tells the operator which file it was.
            log.warning("feed_problem", reason=problem.reason)
        await self._store.mark_loaded(generation)
        metrics.CONTEXT_RELOADS.inc()
        log.info("layers_loaded", departments=len(everybody), patients=patients + reload.patients)

    def _demo_moment(self, now: datetime) -> datetime:
        """When the demo is "now": the same for every gateway of an installation, and again after a lost Redis.

        The record has not changed then, so the proposals made from it stay valid.
        """
        running = self._places.running()
        started = self._started_at if running is None or running.started_at is None else running.started_at
        # A clock that was set back: nothing of a record may lie in the future.
        return min(now, started + (now - started) // _DEMO_DAY * _DEMO_DAY)


def demo_patients(now: datetime, zone: ZoneInfo) -> list[PatientLayer]:
    """The demo's patients, through the same import as real ones, marked as the demo's."""
    layers = []
    for department, bundle in demo.load(now).bundles:
        importer = Importer(departments=(department,), now=now, zone=zone)
        importer.add_file("demo", msgspec.json.encode(bundle))
        layers += [
            msgspec.structs.replace(layer, identifiers=(*layer.identifiers, DEMO_MARK))
            for layer in (imported.layer for imported in importer.finish().patients)
        ]
    return layers


def is_of_demo(layer: PatientLayer) -> bool:
    """Whether a layer came with the demo: it gives way to an import of the same record number and is never merged."""
    return DEMO_MARK in layer.identifiers
