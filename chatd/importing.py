"""``chatd fhir import``: files in, one JSON line per patient out, the layers in Redis if a chatd is running."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from chatd.places import Places
from chatd.records import ForAll, HospitalFileError, configured, is_of_demo
from context.feeds import Feeds, FeedsError
from context.fhir import (
    Import,
    PatientConflict,
    PatientImport,
    import_with_progress,
    merge_patient,
    patient_line,
    summary_lines,
)
from context.hl7_files import HeardFiles
from context.hl7_heard import NotHers, joined
from context.seal import Sealer
from context.store import ContextStore, PatientUnknown, StoreError, connect


async def import_files(places: Places, files: Sequence[Path], *, department: str | None) -> int:
    """Import one export; returns 0, or 1 when a file could not be read or a patient not be stored.

    What was readable is imported all the same, and remembered for the next start.
    """
    now = datetime.now(UTC)
    try:
        found = configured(places.data, is_demo=False, now=now)
    except HospitalFileError as error:
        return _fail(str(error))
    known = tuple(d.department_id for d in found.departments)
    if department is not None and department not in known:
        return _fail(f"no department {department!r}; known: {', '.join(known)}")
    if department is None:
        print("no --department: every department may ask about these patients", file=sys.stderr)
    imported = import_with_progress(files, department=department, now=now, zone=ZoneInfo(found.hospital.timezone))
    for line in summary_lines(imported.files):
        print(line, file=sys.stderr)
    status = int(any(report.error for report in imported.files))
    # What could not be read now would only be a complaint at every start.
    readable = [report.path for report in imported.files if report.error is None]
    try:
        places.prepare()
        if readable:
            Feeds(places.data).add(readable, department=department, added_at=now)
    except FeedsError as error:
        return _fail(error.reason)
    if places.redis_url:
        status |= await _store(places, imported, known)
    for one in imported.patients:
        print(json.dumps(patient_line(one), ensure_ascii=False), flush=True)
    return status


async def _store(places: Places, imported: Import, departments: tuple[str, ...]) -> int:
    redis = connect(places.redis_url)
    sealer = Sealer(places.key_ring())
    store = ContextStore(redis, sealer)
    heard = HeardFiles(places.data, sealer)
    status = 0
    try:
        for one in imported.patients:
            status |= await _merge(store, ForAll(store, departments), one, heard)
    except StoreError as error:
        # The running gateway loads the feeds again when its Redis is back.
        return _fail(
            f"the running chatd could not be told ({type(error).__name__}); it will read the files at its start"
        )
    finally:
        await redis.aclose()
    return status


async def _merge(store: ContextStore, target: ForAll, one: PatientImport, heard: HeardFiles) -> int:
    layer = one.layer
    try:
        known = await store.patient(layer.patient_id)
        if not is_of_demo(known):
            layer = merge_patient(known, layer, retracted=one.retracted)
    except PatientUnknown:
        pass
    except PatientConflict as conflict:
        return _fail(f"a patient was not stored: {conflict}")
    # What a laboratory has corrected by a message is not undone by an export that does not know it.
    if (said := heard.load(layer.patient_id)) is not None:
        try:
            layer = joined(layer, said, now=layer.as_of)
        except NotHers:
            return _fail("a patient was not stored: HL7 messages with this record number are about somebody else")
    await target.put_patient(layer)
    return 0


def _fail(text: str) -> int:
    print(f"chatd: {text}", file=sys.stderr)
    return 1
