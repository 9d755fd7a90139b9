"""Where each layer came from, so that a lost Redis is filled again: a small registry of files, and its reload.

chatd keeps no copy of records on disk: the registry holds paths, departments and times, nothing of a record.
It is one JSON file in the data directory, readable by its owner only, replaced as a whole and locked while it
changes, so that a command and a running server may both write it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec

from context.fhir import FileReport, PatientConflict, PatientImport, import_files, merge_patient
from context.hl7_heard import Heard, NotHers, joined
from context.layers import PatientLayer

__all__ = [
    "FeedEntry",
    "Feeds",
    "FeedsError",
    "LayerStore",
    "PatientConflict",
    "Reload",
    "ReloadProblem",
    "merge_patient",
]

FILE_NAME = "feeds.json"
#: More imports than a hospital makes by hand; the bound keeps a script in a loop from filling the registry.
MAX_ENTRIES = 10_000


class FeedsError(Exception):
    """The registry cannot be read or is full; it is left as it is. ``reason`` names no path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LayerStore(Protocol):
    """What a reload needs of the context store."""

    async def put_patient(self, layer: PatientLayer) -> object: ...


class FeedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One import: its files, read together since they may refer to each other, and who may ask.

    paths: absolute; a folder stands for the files that it holds when it is read.
    department: None: imported for nobody yet.
    """

    kind: Literal["fhir"] = "fhir"
    paths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    department: str | None = None
    added_at: datetime


class _Registry(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1] = 1
    entries: tuple[FeedEntry, ...] = ()


class ReloadProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a reload could not load. ``path`` is empty where it is about a patient, ``patient_id`` where
    it is about a file; ``reason`` holds no text of a record."""

    reason: str
    path: str = ""
    patient_id: str = ""


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload did: patients put into the store, the reports of all files, and what went wrong."""

    patients: int = 0
    files: tuple[FileReport, ...] = ()
    problems: tuple[ReloadProblem, ...] = ()


class Feeds:
    """The registry of one data directory."""

    def __init__(self, data_dir: Path | str) -> None:
        self._path = Path(data_dir) / FILE_NAME

    def entries(self) -> tuple[FeedEntry, ...]:
        """All entries, oldest first; none where there is no registry yet.

        Raises:
            FeedsError: the registry is there and cannot be read.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise FeedsError(f"the feed registry cannot be read ({error.strerror or 'input error'})") from None
        try:
            return msgspec.json.decode(data, type=_Registry).entries
        except msgspec.MsgspecError:
            raise FeedsError("the feed registry is damaged; correct or remove it") from None

    def add(self, paths: Iterable[Path | str], *, department: str | None, added_at: datetime) -> FeedEntry:
        """Remember one import. The same files for the same department again: the entry gets the new time.

        Raises:
            FeedsError: the registry is damaged (it is not overwritten) or full.
            ValueError: no path.
        """
        absolute = tuple(dict.fromkeys(str(Path(path).absolute()) for path in paths))
        if not absolute:
            raise ValueError("an import has at least one file")
        entry = FeedEntry(paths=absolute, department=department, added_at=added_at.astimezone(UTC))
        with self._locked():
            kept = [old for old in self.entries() if not _is_same(old, entry)]
            if len(kept) >= MAX_ENTRIES:
                raise FeedsError(f"the feed registry is full ({MAX_ENTRIES} entries)")
            self._write((*kept, entry))
        return entry

    def remove(self, entry: FeedEntry) -> bool:
        """Forget an import; False if it was not there. Layers already loaded stay until Redis loses them."""
        with self._locked():
            before = self.entries()
            after = tuple(old for old in before if not _is_same(old, entry))
            if len(after) == len(before):
                return False
            self._write(after)
            return True

    async def reload(
        self,
        store: LayerStore,
        now: datetime,
        *,
        zone: tzinfo | None = None,
        already: Iterable[PatientLayer] = (),
        heard: Iterable[Heard] = (),
    ) -> Reload:
        """Import every entry again and put each patient once; doing it twice leaves the same layers.

        A patient of several entries is merged, a later entry wins; what it retracts goes. A missing or broken
        file is reported and costs nothing else. ``already``: patients that came from elsewhere, such as the demo
        hospital; they count as imported first, and are put again only where a file adds to them.
        ``heard``: what HL7 messages have said of patients, joined last: no file knows of it.
        Errors of ``store`` are the caller's: a reload may be repeated.
        """
        try:
            entries = self.entries()
        except FeedsError as error:
            return Reload(problems=(ReloadProblem(reason=error.reason),))
        first = {layer.patient_id: layer for layer in already}
        layers = dict(first)
        files: list[FileReport] = []
        problems: list[ReloadProblem] = []
        for entry in entries:
            # Parsing is seconds of pure computation: in a thread, so that the server's loop goes on.
            imported = await asyncio.to_thread(
                import_files, entry.paths, department=entry.department, now=now, zone=zone
            )
            files += imported.files
            problems += [
                ReloadProblem(path=report.path, reason=report.error) for report in imported.files if report.error
            ]
            problems += combine(layers, imported.patients)
        for one in heard:
            patient_id = one.layer.patient_id
            try:
                layers[patient_id] = joined(layers.get(patient_id), one, now=now)
            except NotHers:
                problems.append(ReloadProblem(patient_id=patient_id, reason="one patient id, two different people"))
        changed = [layer for patient_id, layer in layers.items() if layer is not first.get(patient_id)]
        for layer in changed:
            await store.put_patient(layer)
        return Reload(patients=len(changed), files=tuple(files), problems=tuple(problems))

    # --- the file -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock: a file beside it, since the registry itself is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Whoever holds it reads and writes a few kilobytes; the kernel frees it when a process dies.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, entries: Sequence[FeedEntry]) -> None:
        data = msgspec.json.format(msgspec.json.encode(_Registry(entries=tuple(entries))), indent=1)
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{FILE_NAME}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def combine(layers: dict[str, PatientLayer], imported: Iterable[PatientImport]) -> list[ReloadProblem]:
    """Merge an import into ``layers``, by patient id; gives the patients that could not be merged safely.

    Of two visibly different people under one id the earlier keeps it, as when the later one was imported.
    """
    problems: list[ReloadProblem] = []
    for one in imported:
        patient_id = one.layer.patient_id
        old = layers.get(patient_id)
        if old is None:
            layers[patient_id] = one.layer
            continue
        try:
            layers[patient_id] = merge_patient(old, one.layer, retracted=one.retracted)
        except PatientConflict as conflict:
            problems.append(ReloadProblem(patient_id=patient_id, reason=str(conflict)))
    return problems


def _is_same(one: FeedEntry, other: FeedEntry) -> bool:
    return (one.kind, set(one.paths), one.department) == (other.kind, set(other.paths), other.department)
