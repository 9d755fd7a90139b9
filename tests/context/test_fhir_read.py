"""What a file is, and what a broken one costs."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context import fhir_read
from context.fhir import FhirFileError, import_files, read_file, summary_lines
from tests.context.fhir_builders import NOW, bundle, dumps, ndjson, observation, only, patient, report, run, untimed


@pytest.mark.parametrize("kind", ["transaction", "collection", "batch", "searchset", "history", "document"])
def test_bundle_of_every_type_is_read(kind: str) -> None:
    """A bundle gives its resources whatever its type."""
    assert only(run(bundle(patient(), observation(), kind=kind))).resources == 2


@pytest.mark.parametrize("indent", [None, 1])
def test_single_resource_is_read_in_any_layout(indent: int | None) -> None:
    """A single resource is read on one line and over many."""
    assert only(run(json.dumps(patient(), indent=indent).encode())).layer.name == "João Silva"


def test_list_of_resources_is_read() -> None:
    """A plain JSON list of resources is read like a collection, also with one resource in a line."""
    assert only(run(dumps([patient(), observation()]))).resources == 2
    lines = b"[\n" + dumps(patient()) + b",\n" + dumps(observation()) + b"\n]\n"
    assert only(run(lines)).resources == 2


def test_nested_bundle_is_read() -> None:
    """A batch of searches answers with bundles within a bundle."""
    inner = json.loads(bundle(patient(), observation()))
    assert only(run(bundle(inner))).resources == 2


def test_bundles_nested_without_end_are_refused() -> None:
    """Bundles within bundles end at a depth, and the entry says so."""
    nested = patient()
    for _ in range(5):
        nested = json.loads(bundle(nested))
    assert report(run(dumps(nested))).skipped == {"bundles nested too deep": 1}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_ndjson_with_bom_blank_lines_and_any_line_end(end: bytes) -> None:
    """A byte order mark, blank lines and a missing last line end cost nothing."""
    data = b"\xef\xbb\xbf" + end + dumps(patient()) + end + end + b"  " + end + dumps(observation())
    assert only(run(data)).resources == 2


@pytest.mark.parametrize(
    "broken", [b'{"resourceType":"Obs', b"null", b"[1]", b'"text"', b"\xe3\x28", b'{"a":1}', b"[" * 100000]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_broken_line_loses_only_itself(broken: bytes, place: int) -> None:
    """A line that is no resource is counted, and every other line is taken, wherever it stands."""
    lines = [dumps(patient()), dumps(observation())]
    lines.insert(place, broken)
    result = run(b"\n".join(lines))
    assert only(result).resources == 2
    assert sum(report(result).skipped.values()) == 1


def test_broken_entry_loses_only_itself() -> None:
    """Entries that are no resources are counted, and the rest of the bundle is taken."""
    whole = json.loads(bundle(patient(), observation()))
    whole["entry"] += [5, {}, {"resource": 7}, {"resource": {"resourceType": 9}}, {"resource": {"resourceType": "a b"}}]
    result = run(dumps(whole))
    assert only(result).resources == 2
    assert sum(report(result).skipped.values()) == 5


def test_truncated_bundle_is_an_error_and_costs_no_other_file() -> None:
    """Half a bundle is refused as a whole, with the place, and the file beside it is taken."""
    data = bundle(patient(), observation())
    result = run(data[:-30], bundle(patient("p2")))
    assert result.files[0].error is not None
    assert "not valid JSON" in result.files[0].error
    assert [imported.layer.patient_id for imported in result] == ["p2"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"  \n ", "empty"),
        (b"<Bundle/>", "XML"),
        (b"{}", "not a FHIR resource"),
        (b"[" * 200_000, "too deep"),
        (b'{"resourceType":"Patient"', "not valid JSON"),
        ('{"resourceType":"Patient"}'.encode("utf-16"), "not UTF-8"),
        (b'{"resourceType":"Patient","id":"\xe3"}', "not UTF-8"),
        (b"PK\x03\x04rest", "zip"),
        (gzip.compress(bundle(patient()))[:-12], "gzip"),
        (b"\x1f\x8bnonsense", "gzip"),
        (b"hello", "not valid JSON"),
        (b"17", "not a FHIR resource"),
    ],
)
def test_file_that_is_no_record_is_refused_with_its_reason(data: bytes, words: str) -> None:
    """What is wrong with a whole file is said in its report, and nothing is raised."""
    result = run(data)
    assert result.patients == ()
    assert words in (report(result).error or "")


def test_gzip_is_found_by_content() -> None:
    """A gzipped file is read whatever it is called."""
    assert only(run(gzip.compress(ndjson(patient(), observation())))).resources == 2


def test_truncated_gzip_of_lines_keeps_the_whole_lines() -> None:
    """Lines before the damage stand, and the report says that the file does not end well."""
    data = gzip.compress(ndjson(patient(), *(observation(f"o{n}", note=[{"text": "x" * n}]) for n in range(800))))
    result = run(data[: len(data) // 2])
    assert report(result).error == "damaged or truncated gzip"
    assert only(result).resources > 1


def test_too_large_document_and_line_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds in bytes hold: a document is refused, of NDJSON only the line."""
    monkeypatch.setattr(fhir_read, "MAX_LINE_BYTES", 2000)
    monkeypatch.setattr(fhir_read, "MAX_DOCUMENT_BYTES", 4000)
    big = observation("big", note=[{"text": "x" * 5000}])
    assert "one JSON document" in (report(run(bundle(patient(), big))).error or "")
    result = run(ndjson(patient(), big, observation()))
    assert only(result).resources == 2
    assert sum(report(result).skipped.values()) == 1


def test_file_that_unpacks_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked size of a gzip file is bounded."""
    monkeypatch.setattr(fhir_read, "MAX_FILE_BYTES", 50_000)
    data = gzip.compress(ndjson(patient(), *(observation(f"o{n}") for n in range(2000))))
    assert "more than" in (report(run(data)).error or "")


def test_missing_file_and_folder_are_reported(tmp_path: Path) -> None:
    """A path without a file is reported; a folder gives its FHIR files and no others."""
    (tmp_path / "b.json").write_bytes(bundle(patient()))
    (tmp_path / "notes.txt").write_text("not FHIR")
    result = import_files([tmp_path, tmp_path / "gone.json"], department="icu", now=NOW)
    assert [Path(file.path).name for file in result.files] == ["b.json", "gone.json"]
    assert result.files[1].error == "file not found"
    assert only(result).layer.departments == ("icu",)
    assert "file not found" in "\n".join(summary_lines(result.files))


def test_progress_ends_at_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress never falls, never passes the whole, and ends there."""
    monkeypatch.setattr("context.fhir._REPORT_STEP_BYTES", 20_000)
    for name in ("a.json", "b.ndjson"):
        (tmp_path / name).write_bytes(ndjson(patient(), *(observation(f"{name}{n}") for n in range(250))))
    seen: list[tuple[int, int]] = []
    import_files([tmp_path], department=None, now=NOW, on_progress=lambda done, total: seen.append((done, total)))
    done = [row[0] for row in seen]
    assert done == sorted(done)
    assert len(done) > 4
    assert seen[-1][0] == seen[-1][1] == sum(file.stat().st_size for file in tmp_path.iterdir())


@untimed
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes at all make reading raise anything but the one error it promises."""
    with contextlib.suppress(FhirFileError):
        for entry in read_file(data):
            assert (entry.resource is None) == bool(entry.problem or entry.deleted)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@untimed
@given(st.dictionaries(st.sampled_from(sorted(observation() | {"component": 0, "identifier": 0, "meta": 0})), _JSON))
def test_any_shape_of_a_resource_is_taken_or_counted(fields: dict[str, object]) -> None:
    """A resource of any shape is taken or has a reason; the one beside it is always taken."""
    data = ndjson(patient(), observation("good"), observation("odd") | fields | {"resourceType": "Observation"})
    result = run(data)
    found = report(result)
    assert only(result).layer.observations[-1].value is not None or len(only(result).layer.observations) > 1
    assert sum(found.taken.values()) + sum(found.skipped.values()) == 3
