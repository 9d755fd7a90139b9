"""The registry of imports, and the way back after a lost Redis."""

from __future__ import annotations

import multiprocessing
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.feeds import FILE_NAME, Feeds, FeedsError
from context.fhir import PatientConflict, import_files, merge_patient
from context.layers import PatientLayer, versioned
from tests.context.fhir_builders import (
    NOW,
    allergy,
    bundle,
    coded,
    dumps,
    ndjson,
    observation,
    only,
    patient,
    run,
    untimed,
)

LATER = datetime(2026, 1, 16, tzinfo=UTC)


class Shelf:
    """A context store that keeps its layers in a dict and counts what is put."""

    def __init__(self) -> None:
        self.layers: dict[str, PatientLayer] = {}
        self.puts = 0

    async def put_patient(self, layer: PatientLayer) -> None:
        self.layers[layer.patient_id] = layer
        self.puts += 1


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- the registry -------------------------------------------------------------------------------------------


def test_registry_holds_paths_and_nothing_of_a_record(tmp_path: Path) -> None:
    """The file names paths, department and time; its owner alone may read it; no other file is left."""
    source = write(tmp_path, "a.json", bundle(patient(), observation()))
    data_dir = tmp_path / "data"
    feeds = Feeds(data_dir)
    assert feeds.entries() == ()
    entry = feeds.add([source], department="cardiology", added_at=NOW)
    assert feeds.entries() == (entry,)
    stored = (data_dir / FILE_NAME).read_bytes()
    assert msgspec.json.decode(stored) == {
        "version": 1,
        "entries": [
            {"kind": "fhir", "paths": [str(source)], "department": "cardiology", "added_at": "2026-01-15T07:45:00Z"}
        ],
    }
    assert stat.S_IMODE(os.stat(data_dir / FILE_NAME).st_mode) == 0o600
    assert sorted(path.name for path in data_dir.iterdir()) == ["feeds.json", "feeds.lock"]


def test_same_files_again_are_one_entry_and_another_department_is_a_second(tmp_path: Path) -> None:
    """An import repeated changes the time only; for another department it is another import."""
    feeds = Feeds(tmp_path)
    feeds.add(["/a", "/b"], department="icu", added_at=NOW)
    feeds.add(["/b", "/a"], department="icu", added_at=LATER)
    feeds.add(["/a", "/b"], department="surgery", added_at=NOW)
    assert [(entry.department, entry.added_at) for entry in feeds.entries()] == [("icu", LATER), ("surgery", NOW)]
    assert feeds.remove(feeds.entries()[0])
    assert not feeds.remove(msgspec.structs.replace(feeds.entries()[0], department="icu"))
    assert [entry.department for entry in feeds.entries()] == ["surgery"]


def test_relative_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is kept absolute: the server that reloads runs elsewhere."""
    monkeypatch.chdir(tmp_path)
    entry = Feeds(tmp_path).add(["a.json"], department=None, added_at=NOW)
    assert entry.paths == (str(tmp_path / "a.json"),)
    with pytest.raises(ValueError, match="at least one file"):
        Feeds(tmp_path).add([], department=None, added_at=NOW)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version":2,"entries":[]}', b'{"entries":[{"paths":[]}]}'])
async def test_damaged_registry_is_said_and_never_overwritten(tmp_path: Path, damage: bytes) -> None:
    """A registry that cannot be read refuses to change, and a reload reports it instead of failing."""
    write(tmp_path, FILE_NAME, damage)
    feeds = Feeds(tmp_path)
    with pytest.raises(FeedsError, match="damaged"):
        feeds.add(["/a"], department=None, added_at=NOW)
    assert (tmp_path / FILE_NAME).read_bytes() == damage
    result = await feeds.reload(Shelf(), NOW)
    assert [problem.reason for problem in result.problems] == ["the feed registry is damaged; correct or remove it"]


def test_registry_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure in the middle of writing leaves the old registry whole and no litter beside it."""
    feeds = Feeds(tmp_path)
    feeds.add(["/a"], department=None, added_at=NOW)
    before = (tmp_path / FILE_NAME).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        feeds.add(["/b"], department=None, added_at=NOW)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feeds.json", "feeds.lock"]


def _add_many(folder: str, name: str) -> None:
    feeds = Feeds(folder)
    for number in range(20):
        feeds.add([f"/{name}/{number}"], department=name, added_at=NOW)


def test_two_processes_that_add_lose_nothing(tmp_path: Path) -> None:
    """A command and a server that write at once both keep their entries."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_add_many, args=(str(tmp_path), name)) for name in ("cli", "server")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Feeds(tmp_path).entries()) == 40


# --- the reload ---------------------------------------------------------------------------------------------


async def test_reload_brings_back_what_the_imports_gave(tmp_path: Path) -> None:
    """After a lost Redis the layers are those of the import, files of one import read together; twice is once."""
    people = write(tmp_path, "Patient.ndjson", ndjson(patient(), patient("p2", name=[{"text": "Ana Reis"}])))
    values = write(tmp_path, "Observation.ndjson", ndjson(observation(), observation("o2", "p2")))
    feeds = Feeds(tmp_path)
    feeds.add([people, values], department="cardiology", added_at=NOW)
    expected = {
        imported.layer.patient_id: imported.layer
        for imported in import_files([people, values], department="cardiology", now=LATER)
    }
    shelf = Shelf()
    result = await feeds.reload(shelf, LATER)
    assert (result.patients, result.problems, len(result.files)) == (2, (), 2)
    assert shelf.layers == expected
    await feeds.reload(shelf, LATER)
    assert shelf.layers == expected


async def test_reload_gives_a_patient_every_department_that_imported_her(tmp_path: Path) -> None:
    """The same record imported for two departments may be asked by both, and is put once."""
    source = write(tmp_path, "a.json", bundle(patient(), observation()))
    feeds = Feeds(tmp_path)
    for department in ("icu", "cardiology"):
        feeds.add([source], department=department, added_at=NOW)
    shelf = Shelf()
    await feeds.reload(shelf, NOW)
    assert shelf.layers["p1"].departments == ("cardiology", "icu")
    assert shelf.puts == 1


async def test_reload_survives_missing_and_broken_files(tmp_path: Path) -> None:
    """A file that is gone or broken is named, and the rest is loaded."""
    good = write(tmp_path, "good.json", bundle(patient()))
    broken = write(tmp_path, "broken.json", bundle(patient("p9"))[:-9])
    feeds = Feeds(tmp_path)
    for path in (tmp_path / "gone.json", broken, good):
        feeds.add([path], department="icu", added_at=NOW)
    shelf = Shelf()
    result = await feeds.reload(shelf, NOW)
    assert set(shelf.layers) == {"p1"}
    assert [Path(problem.path).name for problem in result.problems] == ["gone.json", "broken.json"]


async def test_reload_honours_what_a_later_import_retracts(tmp_path: Path) -> None:
    """A value that a later file calls an error is not brought back by the earlier file."""
    first = write(tmp_path, "1.json", bundle(patient(), observation(), observation("o2")))
    second = write(tmp_path, "2.json", bundle(patient(), observation(status="entered-in-error")))
    feeds = Feeds(tmp_path)
    for path in (first, second):
        feeds.add([path], department="icu", added_at=NOW)
    shelf = Shelf()
    await feeds.reload(shelf, NOW)
    assert [row.ref for row in shelf.layers["p1"].observations] == ["Observation/o2"]


async def test_reload_never_makes_one_of_two_people(tmp_path: Path) -> None:
    """Two people under one id in two imports: the earlier keeps it, the later is reported by id alone."""
    other = patient(name=[{"text": "Maria Costa"}], birthDate="1990-12-12")
    feeds = Feeds(tmp_path)
    for name, data in (("1.json", bundle(patient())), ("2.json", bundle(other, observation()))):
        feeds.add([write(tmp_path, name, data)], department="icu", added_at=NOW)
    shelf = Shelf()
    result = await feeds.reload(shelf, NOW)
    assert (shelf.layers["p1"].name, shelf.layers["p1"].observations) == ("João Silva", ())
    assert [(problem.patient_id, problem.reason) for problem in result.problems] == [
        ("p1", "one patient id, two different people")
    ]


async def test_reload_adds_to_patients_from_elsewhere_and_never_replaces_them(tmp_path: Path) -> None:
    """A patient who is there already gains what the files have; another person under that id is reported."""
    same, other = layer_of(allergy(), department="icu"), only(run(bundle(patient("p2", birthDate="1999-09-09")))).layer
    data = bundle(patient(), observation(), patient("p2", name=[{"text": "Maria Costa"}]))
    feeds = Feeds(tmp_path)
    feeds.add([write(tmp_path, "a.json", data)], department="surgery", added_at=NOW)
    shelf = Shelf()
    result = await feeds.reload(shelf, NOW, already=[same, other])
    assert set(shelf.layers) == {"p1"}
    assert shelf.layers["p1"].departments == ("icu", "surgery")
    assert (len(shelf.layers["p1"].allergies), len(shelf.layers["p1"].observations)) == (1, 1)
    assert [problem.patient_id for problem in result.problems] == ["p2"]


# --- merging ------------------------------------------------------------------------------------------------


def layer_of(*rows: dict[str, Any], department: str = "cardiology", **fields: Any) -> PatientLayer:
    return only(run(bundle(patient(**fields), *rows), department=department)).layer


def test_merge_unions_departments_numbers_and_items() -> None:
    """The newer layer wins where both have an item; departments and items of both stay, in order."""
    old = layer_of(observation("o1", effectiveDateTime="2020-01-01"), allergy(), department="icu")
    new = layer_of(observation("o1", valueString="corrected"), observation("o2", effectiveDateTime="2024-01-01"))
    merged = merge_patient(old, new)
    assert merged.departments == ("cardiology", "icu")
    assert [(row.ref, row.text) for row in merged.observations] == [
        ("Observation/o1", "corrected"),
        ("Observation/o2", None),
    ]
    assert (merged.allergy_status, merged.version) == ("known", versioned(merged).version)


def test_merge_drops_retracted_items_and_stale_components() -> None:
    """What the new source retracts goes with its components, and a panel that changed keeps no old part."""
    part = {"code": coded("8480-6"), "valueQuantity": {"value": 120}}
    other = {"code": coded("8462-4"), "valueQuantity": {"value": 80}}
    old = layer_of(observation("bp", component=[part, other]), observation("o1"), observation("gone", component=[part]))
    new = layer_of(observation("bp", component=[part]))
    merged = merge_patient(old, new, retracted=["Observation/gone"])
    assert {row.ref for row in merged.observations} == {"Observation/bp#8480-6", "Observation/o1"}


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ([], [], "not_recorded"),
        ([allergy(code={"text": "NKA"})], [], "none_known"),
        ([], [allergy(code={"text": "NKA"})], "none_known"),
        ([allergy()], [allergy("a2", code={"text": "NKA"})], "known"),
    ],
)
def test_merge_says_of_allergies_only_what_is_recorded(old: list[Any], new: list[Any], status: str) -> None:
    """An allergy of either side makes "known"; "none known" needs one side that says so."""
    assert merge_patient(layer_of(*old), layer_of(*new)).allergy_status == status


def test_merge_refuses_two_people() -> None:
    """Layers of two ids, or of two visibly different people under one id, are never one."""
    with pytest.raises(ValueError, match="different patients"):
        merge_patient(layer_of(), only(run(dumps(patient("p2")))).layer)
    with pytest.raises(PatientConflict):
        merge_patient(layer_of(), only(run(dumps(patient(name=[{"text": "X Y"}], birthDate="1999-09-09")))).layer)


ROWS = (*(observation(f"o{n}") for n in range(6)), *(allergy(f"a{n}") for n in range(3)))
ITEMS = st.lists(st.sampled_from(ROWS), max_size=6)


@untimed
@given(ITEMS, ITEMS)
def test_merge_twice_is_merge_once_and_loses_nothing(first: list[Any], second: list[Any]) -> None:
    """Merging is idempotent, and every item of both sides is in the result."""
    old, new = layer_of(*first, department="icu"), layer_of(*second)
    merged = merge_patient(old, new)
    assert merge_patient(merged, new) == merged
    assert {row.ref for row in merged.observations} == {row.ref for side in (old, new) for row in side.observations}
    assert {row.ref for row in merged.allergies} == {row.ref for side in (old, new) for row in side.allergies}
