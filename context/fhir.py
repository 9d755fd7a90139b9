"""FHIR R4 records to patient layers: bundles, single resources and bulk NDJSON, over one file or many.

Nothing here awaits or keeps a copy. What is taken, and why each other resource is not, is counted per file
and per patient (``docs/fhir-import.md`` lists the rules); a resource that cannot be read costs only itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import msgspec

from context import fhir_codes as codes
from context.fhir_convert import (
    CONVERTERS,
    Env,
    Item,
    Json,
    Outcome,
    medication_name,
    moment,
    obj,
    objects,
    status_reason,
    texts,
)
from context.fhir_layer import Findings, PatientConflict, merge_patient, patient_layer
from context.fhir_people import PatientRecord, People, Person, Subject, patient_record, scope_of, subject_of
from context.fhir_read import Entry, FhirFileError, read_file
from context.fhir_text import Unreadable, clean
from context.layers import ChartRef, Medication, PatientLayer

__all__ = [
    "Entry",
    "FhirFileError",
    "FileReport",
    "Import",
    "Importer",
    "PatientConflict",
    "PatientImport",
    "expand",
    "import_files",
    "import_with_progress",
    "merge_patient",
    "patient_line",
    "read_file",
    "summary_lines",
    "warm_up",
]

#: Resources that one import holds: about 2 GiB of memory. More patients than that come in several imports.
MAX_RESOURCES = 3_000_000
#: Endings of the files that a folder is searched for; a file that is named itself may be called anything.
FOLDER_SUFFIXES = (".json", ".ndjson", ".jsonl", ".json.gz", ".ndjson.gz", ".jsonl.gz")
#: A progress bar that is gone before it is read only disturbs.
_PROGRESS_AFTER_S = 2.0
_REPORT_STEP_BYTES = 256 * 1024

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_TIMES = ("effectiveDateTime", "effectivePeriod", "effectiveInstant", "issued")
_MIN = datetime.min.replace(tzinfo=UTC)
_STATUS_RANK = {"registered": 0, "preliminary": 0, "partial": 0, "amended": 2, "corrected": 2, "appended": 2}


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file.

    taken: resources that stand in a layer, by type. skipped: resources that do not, by reason.
    noted: what was repaired or is missing in a resource that was taken, by remark.
    error: why the file could not be read, or not to its end; None if it was.
    None of the texts holds text of a record; ``path`` may (exports name their files after patients).
    """

    path: str
    taken: dict[str, int] = {}
    skipped: dict[str, int] = {}
    noted: dict[str, int] = {}
    error: str | None = None


class PatientImport(msgspec.Struct, frozen=True, kw_only=True):
    """One patient: the layer, how many resources it rests on (the Patient resource among them), and how many
    that name this patient were skipped, by reason. ``retracted``: refs that the source has taken back."""

    layer: PatientLayer
    resources: int
    skipped: int
    reasons: dict[str, int] = {}
    retracted: tuple[ChartRef, ...] = ()


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one import; iterating gives the patients."""

    patients: tuple[PatientImport, ...] = ()
    files: tuple[FileReport, ...] = ()

    def __iter__(self) -> Iterator[PatientImport]:
        return iter(self.patients)


class _Draft(msgspec.Struct, kw_only=True):
    """One resource on its way: converted, its patient not yet known.

    reason: why it is not taken, "" if it is. is_unreadable: the reason is that it could not be understood.
    """

    kind: str
    id: str
    scope: str
    file: int
    order: int
    subject: Subject
    updated: datetime | None = None
    version: int = -1
    status: str = ""
    retracted: bool = False
    identifiers: tuple[tuple[str, str], ...] = ()
    replaces: tuple[str, ...] = ()
    outcome: Outcome = Outcome()
    reason: str = ""
    is_unreadable: bool = False
    person: Person | None = None

    @property
    def ref(self) -> ChartRef:
        return f"{self.kind}/{self.id}"

    def rank(self) -> tuple[datetime, int, bool, int, int]:
        """The newest version has the greatest rank; without versions a retraction, then a correction wins."""
        known = _STATUS_RANK.get(self.status, 1)
        return (self.updated or _MIN, self.version, self.retracted, known, self.order)


class _Medication(msgspec.Struct, frozen=True):
    scope: str
    id: str
    full_url: str
    name: str
    code: str | None


class Importer:
    """Collects the resources of several files, then gives the patients.

    Args:
        departments: who may ask about the patients of this import.
        now: the time of the import, aware; it becomes ``as_of`` of each layer.
        zone: the hospital's zone, for times that name none; None: such a time counts as unknown.
    """

    def __init__(self, *, departments: Sequence[str] = (), now: datetime, zone: tzinfo | None = None) -> None:
        self._departments = tuple(departments)
        self._now = now.astimezone(UTC)
        self._zone = zone
        self._paths: list[str] = []
        self._errors: list[str | None] = []
        self._noted: list[Counter[str]] = []
        self._taken: list[Counter[str]] = []
        self._skipped: list[Counter[str]] = []
        self._records: list[PatientRecord] = []
        self._drafts: list[_Draft] = []
        self._medications: list[_Medication] = []
        self._deleted: list[tuple[str, str, datetime | None]] = []
        self._order = 0

    # --- collecting -----------------------------------------------------------------------------------------

    def add_file(
        self, path: Path | str, data: bytes | None = None, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """Read one file, or ``data`` under the name ``path``. Never raises for what is in it: see ``reports``."""
        file = len(self._paths)
        self._paths.append(str(path))
        self._errors.append(None)
        for counters in (self._noted, self._taken, self._skipped):
            counters.append(Counter())
        try:
            for entry in read_file(path if data is None else data, on_bytes):
                if self._order >= MAX_RESOURCES:
                    raise FhirFileError(f"more than {MAX_RESOURCES} resources in one import")
                self._order += 1
                self._add(entry, file)
        except FhirFileError as error:
            self._errors[file] = error.reason

    def _add(self, entry: Entry, file: int) -> None:
        bundle = f"bundle:{file}:{entry.bundle}" if entry.bundle else ""
        scope = scope_of(entry.full_url, bundle)
        env = Env(zone=self._zone, noted=self._noted[file])
        if entry.deleted:
            kind_and_id = "/".join(entry.deleted.split("/_history")[0].split("/")[-2:])
            self._deleted.append((scope_of(entry.deleted, scope), kind_and_id, moment(entry.deleted_at, env)))
            self._skipped[file]["deleted at the source"] += 1
            return
        resource = entry.resource
        if resource is None:
            self._skipped[file][entry.problem] += 1
            return
        kind = texts(resource.get("resourceType"))
        if kind not in codes.FIELDS:
            self._drafts.append(
                _Draft(
                    kind=kind,
                    id="",
                    scope=scope,
                    file=file,
                    order=self._order,
                    subject=subject_of(resource),
                    reason=f"not used: {kind}",
                )
            )
        elif kind == "Patient":
            self._add_patient(resource, entry, file, scope, env)
        elif kind == "Medication":
            self._add_medication(resource, entry, file, scope, env)
        else:
            self._add_clinical(resource, entry, file, scope, env)
            if kind in codes.HOLD_RESULTS:
                for inner in _contained_results(resource):
                    self._order += 1
                    self._add_clinical(inner, Entry(number=entry.number), file, scope, env)

    def _add_patient(self, resource: Json, entry: Entry, file: int, scope: str, env: Env) -> None:
        try:
            read = _validated(_pruned(resource, env), env)
        except Unreadable as error:
            self._skipped[file][error.reason] += 1
            return
        record = patient_record(
            read, scope=scope, full_url=entry.full_url, file=file, order=self._order, now=self._now, env=env
        )
        self._records.append(record)

    def _add_medication(self, resource: Json, entry: Entry, file: int, scope: str, env: Env) -> None:
        try:
            read = _validated(_pruned(resource, env), env)
        except Unreadable as error:
            self._skipped[file][error.reason] += 1
            return
        name, code = medication_name(read)
        if not name or read.get("status") == "entered-in-error":
            self._skipped[file]["medicine not named" if not name else "entered in error"] += 1
            return
        identity = texts(read.get("id"))
        self._medications.append(_Medication(scope, identity, entry.full_url, name, code))
        self._taken[file]["Medication"] += 1

    def _add_clinical(self, resource: Json, entry: Entry, file: int, scope: str, env: Env) -> None:
        kind = resource["resourceType"]
        draft = _Draft(
            kind=kind,
            id=_identity(resource, entry.full_url),
            scope=scope,
            file=file,
            order=self._order,
            subject=subject_of(resource),
            status=texts(resource.get("status")),
            retracted=_is_entered_in_error(resource),
        )
        self._drafts.append(draft)
        draft.updated, draft.version = _version(resource, env)
        draft.identifiers = tuple(
            (system, value)
            for row in objects(resource.get("identifier"))
            if (system := texts(row.get("system"))) and (value := texts(row.get("value")))
        )
        draft.replaces = tuple(_replaced(resource))
        # A retraction must be heard whatever else is wrong with the resource.
        if draft.retracted:
            draft.reason = "entered in error"
            return
        if reason := status_reason(kind, draft.status):
            draft.reason = reason
            return
        try:
            read = _validated(_pruned(resource, env), env)
        except Unreadable as error:
            draft.reason, draft.is_unreadable = error.reason, True
            return
        draft.outcome = CONVERTERS[kind](read, draft.ref, env)
        draft.reason = draft.outcome.reason

    # --- giving ---------------------------------------------------------------------------------------------

    def finish(self) -> Import:
        """Resolve every reference and build the layers. To be called once, after the last file."""
        people = People([record for record in self._records if not record.reason])
        for record in self._records:
            if record.reason and record not in people.older:
                self._skipped[record.file][record.reason] += 1
        for record in people.older:
            self._skipped[record.file]["older version"] += 1
        for draft in self._drafts:
            found = people.resolve(draft.subject, draft.scope)
            if isinstance(found, Person):
                draft.person = found
                if found.reason:
                    draft.reason = draft.reason or f"patient skipped: {found.reason}"
            else:
                draft.reason = draft.reason or found
        self._settle_versions()
        names = _MedicationNames(self._medications)
        by_person: dict[int, list[_Draft]] = defaultdict(list)
        for draft in self._drafts:
            if draft.person is not None:
                by_person[id(draft.person)].append(draft)
        patients = [
            imported
            for person in people.persons
            if (imported := self._patient(person, by_person.get(id(person), []), names)) is not None
        ]
        for draft in self._drafts:
            if draft.reason:
                self._skipped[draft.file][draft.reason] += 1
            else:
                self._taken[draft.file][draft.kind] += 1
        return Import(patients=tuple(patients), files=self._reports())

    def _settle_versions(self) -> None:
        """Leave one version of each resource, and none of what was moved, deleted, retracted or replaced."""
        clinical = [draft for draft in self._drafts if draft.id]
        deleted = {(scope, ref): when for scope, ref, when in self._deleted}
        for draft in clinical:
            when = deleted.get((draft.scope, draft.ref), _MIN)
            if when is not _MIN and (when is None or draft.updated is None or draft.updated <= when):
                draft.reason, draft.retracted = "deleted at the source", True
        # One id of one server is one resource, whoever it is about now: a result filed under the wrong patient
        # and moved must not stay with the first one.
        for group in _groups(clinical, lambda draft: (draft.scope, draft.kind, draft.id)):
            newest = max(group, key=_Draft.rank)
            for draft in group:
                if draft is newest or draft.person is newest.person:
                    continue
                if draft.rank()[:2] == newest.rank()[:2]:
                    draft.reason = newest.reason = "one id, two patients"
                else:
                    draft.reason, draft.retracted = "older version", True
        placed = [draft for draft in clinical if draft.person is not None]
        for group in _groups(placed, lambda d: (id(d.person), _base(d.scope), d.kind, d.id)):
            _keep_newest(group)
        alike = [
            (draft, key)
            for draft in placed
            if not draft.reason and draft.outcome.same_as != ("", "")
            for key in draft.identifiers
        ]
        by_identifier: dict[tuple[Any, ...], list[_Draft]] = defaultdict(list)
        for draft, identifier in alike:
            by_identifier[id(draft.person), draft.kind, identifier, draft.outcome.same_as].append(draft)
        for group in by_identifier.values():
            _keep_newest([draft for draft in group if not draft.reason])
        by_ref = {(id(draft.person), draft.ref): draft for draft in placed}
        for draft in placed:
            for target in draft.replaces if not draft.reason else ():
                old = by_ref.get((id(draft.person), "/".join(target.split("/")[-2:])))
                if old is not None and old is not draft and not old.reason:
                    old.reason, old.retracted = "replaced by a newer resource", True

    def _patient(self, person: Person, drafts: list[_Draft], names: _MedicationNames) -> PatientImport | None:
        leading = person.records[0]
        if person.reason:
            for record in person.records:
                self._skipped[record.file][person.reason] += 1
            return None
        found = Findings(items=[], pregnancies=[], no_known=set())
        refs: Counter[ChartRef] = Counter()
        reasons: Counter[str] = Counter()
        for draft in sorted(drafts, key=lambda draft: draft.order):
            if not draft.reason and draft.outcome.medication_ref:
                self._name_medicine(draft, names)
            if draft.reason:
                found.unreadable_allergies += draft.is_unreadable and draft.kind == "AllergyIntolerance"
                continue
            refs[draft.ref] += 1
            found.items += [_numbered(item, refs[draft.ref]) for item in draft.outcome.items]
            if draft.outcome.pregnancy is not None:
                found.pregnancies.append(draft.outcome.pregnancy)
            if draft.outcome.no_known:
                found.no_known.add(draft.outcome.no_known)
        left_out: Counter[str] = Counter()
        layer, dropped = patient_layer(person, found, departments=self._departments, now=self._now, left_out=left_out)
        kept = {item.ref for items in _item_tuples(layer) for item in items}
        for draft in drafts:
            items = draft.outcome.items
            if not draft.reason and items and dropped and not any(item.ref in kept for item in items):
                draft.reason = "older entry beyond the limit"
            if draft.reason:
                reasons[draft.reason] += 1
        for record in person.records[1:]:
            reasons["joined with another Patient resource"] += 1
            self._skipped[record.file]["joined with another Patient resource"] += 1
        self._taken[leading.file]["Patient"] += 1
        taken = 1 + sum(not draft.reason for draft in drafts)
        retracted = sorted({draft.ref for draft in drafts if draft.retracted} - {ref.partition("#")[0] for ref in kept})
        return PatientImport(
            layer=layer,
            resources=taken,
            skipped=reasons.total(),
            reasons=dict(sorted(reasons.items())),
            retracted=tuple(retracted),
        )

    def _name_medicine(self, draft: _Draft, names: _MedicationNames) -> None:
        item = draft.outcome.items[0]
        medicine = names.find(draft.outcome.medication_ref, draft.scope)
        if medicine is not None and isinstance(item, Medication):
            named = msgspec.structs.replace(item, name=medicine.name, code=item.code or medicine.code)
            draft.outcome = msgspec.structs.replace(draft.outcome, items=(named,))
        elif not isinstance(item, Medication) or not item.name:
            draft.reason = "medicine not in the import"

    def _reports(self) -> tuple[FileReport, ...]:
        return tuple(
            FileReport(
                path=path,
                taken=dict(sorted(self._taken[file].items())),
                skipped=dict(sorted(self._skipped[file].items())),
                noted=dict(sorted(self._noted[file].items())),
                error=self._errors[file],
            )
            for file, path in enumerate(self._paths)
        )


class _MedicationNames:
    """The Medication resources of an import, found by reference."""

    def __init__(self, medications: Iterable[_Medication]) -> None:
        self._by_key: dict[tuple[str, str], _Medication] = {}
        self._by_id: dict[str, list[_Medication]] = defaultdict(list)
        self._by_url: dict[tuple[str, str], _Medication] = {}
        for medication in medications:
            self._by_key[medication.scope, medication.id] = medication
            self._by_id[medication.id].append(medication)
            if medication.full_url:
                self._by_url[medication.scope, medication.full_url] = medication
                self._by_url.setdefault(("", medication.full_url), medication)

    def find(self, reference: str, scope: str) -> _Medication | None:
        """The one that ``reference`` means; None if none does, or if several of different names might."""
        plain = reference.split("/_history/", maxsplit=1)[0]
        found = self._by_url.get((scope, plain)) or self._by_url.get(("", plain))
        if found is not None:
            return found
        identity = plain.rpartition("/")[2]
        if (found := self._by_key.get((scope_of(plain, scope), identity))) is not None:
            return found
        others = self._by_id.get(identity, [])
        return others[0] if others and len({(other.name, other.code) for other in others}) == 1 else None


# --- reading one resource -----------------------------------------------------------------------------------


def _pruned(resource: Json, env: Env) -> Json:
    """The fields that are read, cleaned; raises Unreadable."""
    kind = resource["resourceType"]
    if resource.get("modifierExtension"):
        raise Unreadable("modifier extension not understood")
    if resource.get("implicitRules"):
        raise Unreadable("implicit rules not understood")
    if type(resource) is not dict:
        raise Unreadable("a member stands twice")
    fields = {field: resource[field] for field in codes.FIELDS[kind] if resource.get(field) not in (None, "")}
    if "contained" in fields:
        fields["contained"] = [
            {key: row[key] for key in codes.FIELDS["Medication"] if key in row}
            for row in objects(fields["contained"])
            if row.get("resourceType") == "Medication"
        ]
    cleaned: Json = clean(fields, env.noted)
    return {key: value for key, value in cleaned.items() if value not in ([], {})}


@functools.cache
def _model(kind: str) -> Any:
    return getattr(importlib.import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)


def warm_up() -> None:
    """Load the models of all types that are read: about a second, once per process."""
    for kind in codes.FIELDS:
        _model(kind)


def _validated(resource: Json, env: Env) -> Json:
    """The resource, valid by the R4B model; raises Unreadable where a field that carries the meaning is not.

    Repaired, and counted: unknown fields are ignored, and an invalid field outside ``codes.CORE`` is dropped.
    A required field that is missing is left to the conversion, which knows whether it can do without.
    """
    from pydantic import ValidationError

    kind = resource["resourceType"]
    for _ in range(len(resource) + 1):
        try:
            _model(kind).model_validate(resource)
        except ValidationError as error:
            problems = [row for row in error.errors(include_url=False, include_input=False) if row["type"] != "missing"]
        else:
            return resource
        if not problems:
            return resource
        for problem in problems:
            path = problem["loc"]
            top = path[0] if path else ""
            if problem["type"] == "extra_forbidden" and _drop(resource, path):
                env.noted["unknown field ignored"] += 1
            elif top in resource and top not in codes.CORE[kind] and top != "resourceType":
                del resource[top]
                env.noted[f"invalid field dropped: {top}"] += 1
            elif top not in resource and top in codes.FIELDS[kind]:
                continue
            else:
                raise Unreadable(f"invalid: {top if top in codes.FIELDS[kind] else 'more than one of a choice'}")
    raise Unreadable("invalid")


def _drop(resource: Json, path: tuple[Any, ...]) -> bool:
    """Delete what stands at ``path``; False if nothing does."""
    node: Any = resource
    for step in path[:-1]:
        try:
            node = node[step]
        except (LookupError, TypeError):
            return False
    if isinstance(node, dict) and path and path[-1] in node:
        del node[path[-1]]
        return True
    return False


def _identity(resource: Json, full_url: str) -> str:
    """The resource's id; in a transaction it may only have a urn, and without any it is named by its content.

    An id that FHIR does not allow is none: it would end in references, and on the wire.
    """
    for identity in (texts(resource.get("id")).strip(), full_url.rpartition(":")[2]):
        if _ID.fullmatch(identity):
            return identity
    try:
        content = json.dumps(resource, sort_keys=True, default=str).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        content = b"unreadable"
    return f"x-{hashlib.sha256(content).hexdigest()[:16]}"


def _contained_results(resource: Json) -> Iterator[Json]:
    """The observations that stand inside a report or a panel, as resources of their own.

    They have the version of what holds them, and its patient and time where they name none: one that names a
    patient of its own, such as a donor or a child, keeps it. They are retracted with what holds them. Their id is
    the holder's and their own: "r1.o2".
    """
    outer = _identity(resource, "")
    for row in objects(resource.get("contained")):
        if row.get("resourceType") != "Observation" or type(row) is not dict:
            continue
        inner = row | {"id": f"{outer}.{_identity(row, '')}"}
        inherited = ["meta"]
        if not inner.get("subject"):
            inherited.append("subject")
        if not any(inner.get(key) for key in _TIMES):
            inherited += _TIMES
        inner |= {key: resource[key] for key in inherited if key in resource}
        if _is_entered_in_error(resource):
            inner["status"] = "entered-in-error"
        yield inner


def _version(resource: Json, env: Env) -> tuple[datetime | None, int]:
    meta = obj(resource.get("meta"))
    number = texts(meta.get("versionId"))
    # Version ids are opaque by the standard; where they are numbers, servers count them up.
    return moment(meta.get("lastUpdated"), env), int(number) if number.isascii() and number.isdigit() else -1


def _is_entered_in_error(resource: Json) -> bool:
    if "entered-in-error" in (resource.get("status"), resource.get("docStatus")):
        return True
    concept = obj(resource.get("verificationStatus"))
    return any(coding.get("code") == "entered-in-error" for coding in objects(concept.get("coding")))


def _replaced(resource: Json) -> Iterator[str]:
    """References to what this resource says it replaces."""
    for extension in objects(resource.get("extension")):
        if texts(extension.get("url")).endswith("replaces"):
            yield texts(obj(extension.get("valueReference")).get("reference"))
    for row in objects(resource.get("relatesTo")):
        if row.get("code") == "replaces":
            yield texts(obj(row.get("target")).get("reference"))


# --- versions -----------------------------------------------------------------------------------------------


def _base(scope: str) -> str:
    """The server an id belongs to; ids of bundles and files without an address share one space per person."""
    return scope if scope.startswith("http") else ""


def _groups(drafts: Iterable[_Draft], key: Callable[[_Draft], tuple[Any, ...]]) -> list[list[_Draft]]:
    groups: dict[tuple[Any, ...], list[_Draft]] = defaultdict(list)
    for draft in drafts:
        groups[key(draft)].append(draft)
    return [group for group in groups.values() if len(group) > 1]


def _keep_newest(group: list[_Draft]) -> None:
    """Mark all but the newest; the newest keeps its own reason, so a retraction leaves nothing."""
    if len(group) < 2:
        return
    newest = max(group, key=_Draft.rank)
    for draft in group:
        if draft is not newest:
            is_copy = draft.rank()[:4] == newest.rank()[:4] and draft.outcome == newest.outcome
            draft.reason = draft.reason or ("duplicate" if is_copy else "older version")
            draft.retracted = draft.retracted or draft.ref != newest.ref


def _numbered(item: Item, nth: int) -> Item:
    """The item, its ref made unique where two servers use one id for two resources of one person."""
    if nth == 1:
        return item
    ref, hash_, component = item.ref.partition("#")
    return msgspec.structs.replace(item, ref=f"{ref}~{nth}{hash_}{component}")


def _item_tuples(layer: PatientLayer) -> tuple[tuple[Item, ...], ...]:
    return (
        layer.conditions,
        layer.medications,
        layer.allergies,
        layer.observations,
        layer.reports,
        layer.events,
    )


# --- whole imports ------------------------------------------------------------------------------------------


def expand(paths: Iterable[Path | str]) -> list[Path]:
    """The files of ``paths``: a folder gives its files with a FHIR ending, sorted by name; others as they are."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(
                file for file in path.rglob("*") if file.name.lower().endswith(FOLDER_SUFFIXES) and file.is_file()
            )
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def import_files(
    paths: Iterable[Path | str],
    *,
    department: str | None,
    now: datetime,
    on_progress: Callable[[int, int], None] | None = None,
    zone: tzinfo | None = None,
) -> Import:
    """Import several files as one group, so that they may refer to each other.

    Args:
        department: who may ask about these patients; None: nobody yet.
        now: the time of the import, aware.
        on_progress: called with bytes read and bytes in all, at the start, every 256 KiB and at the end.
        zone: see ``Importer``.
    """
    files = expand(paths)
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    total, before, told = sum(sizes), 0, -_REPORT_STEP_BYTES
    importer = Importer(departments=(department,) if department else (), now=now, zone=zone)

    def tell(done: int) -> None:
        nonlocal told
        if on_progress is not None and done - told >= _REPORT_STEP_BYTES:
            told = done
            on_progress(min(done, total), total)

    tell(0)
    for file, size in zip(files, sizes, strict=True):
        importer.add_file(file, on_bytes=lambda read, start=before: tell(start + read))  # type: ignore[misc]
        before += size
        tell(before)
    result = importer.finish()
    if on_progress is not None:
        on_progress(total, total)
    return result


def import_with_progress(
    paths: Iterable[Path | str],
    *,
    department: str | None,
    now: datetime,
    zone: tzinfo | None = None,
) -> Import:
    """``import_files`` with a bar on stderr, where that is a terminal and the import takes over two seconds."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return import_files(paths, department=department, now=now, zone=zone)
    started = time.monotonic()
    bar = Progress(
        TextColumn("FHIR import"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    task = bar.add_task("import", total=None)

    def on_progress(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - started > _PROGRESS_AFTER_S:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        return import_files(paths, department=department, now=now, on_progress=on_progress, zone=zone)
    finally:
        bar.stop()


def patient_line(imported: PatientImport) -> dict[str, str | int]:
    """What ``chatd fhir import`` prints of a patient, one JSON object per line."""
    return {
        "patient_id": imported.layer.patient_id,
        "name": imported.layer.name,
        "resources": imported.resources,
        "skipped": imported.skipped,
    }


def summary_lines(files: Sequence[FileReport]) -> list[str]:
    """The file reports for people, a few lines each; they name files, so they belong on a terminal, not in a log."""
    lines: list[str] = []
    for report in files:
        taken, skipped = sum(report.taken.values()), sum(report.skipped.values())
        lines.append(f"{report.path}: {taken} taken, {skipped} not taken")
        if report.error is not None:
            lines.append(f"  error: {report.error}")
        for title, counts in (("taken", report.taken), ("not taken", report.skipped), ("noted", report.noted)):
            if counts:
                lines.append(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return lines
