"""The pages tell what is there: settings, codes, metrics, logs, routes, commands, links, and the rooms' arrows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from chatd import endpoints, metrics
from chatd.alerts.handover import OFFER_S
from chatd.cli import main
from chatd.faults import STEPS
from chatd.readiness import Readiness
from chatd.records import configured
from chatd.settings import Settings, unknown_names
from protocols.errors import CloseCode, ErrorCode
from tests.server import Hospital, hospital

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocols", "context", "chatd")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "NOTICE", "SECURITY.md", "protocols/SPEC.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
README = PAGES["README.md"]
OPERATIONS = PAGES["docs/operations.md"]
#: What may stand behind ``scheme://`` on a page: this machine, reserved names, and placeholders of an address.
HOSTS = re.compile(r"(127\.0\.0\.1|localhost|[\w.-]+\.example|HOST|H|USER|user@host)?$")
#: First parts of absolute paths on the pages: routes of chatd, a proxy's path to it, customary places of a system.
ROOTS = {"", "chat", "v1", "web", "health", "metrics", "chatd", "var", "etc", "srv", "tmp", "dev", "run", "folder"}
#: Where a licence that NOTICE must repeat stands.
LICENCES = {"www.unicode.org"}


# --- reading pages ------------------------------------------------------------------------------------------


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the first row being the heads."""
    found: list[list[list[str]]] = []
    inside = False
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside:
            found.append([])
            inside = True
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return found


def table(page: str, *heads: str) -> list[list[str]]:
    """The rows of the one table of a page, or of all its tables, that begin with these heads."""
    rows = [row for each in tables(page) if tuple(each[0][: len(heads)]) == heads for row in each[1:]]
    assert rows, f"no table {heads}"
    return rows


def code(text: str) -> list[str]:
    """What stands between backticks, fenced blocks apart."""
    return re.findall(r"`([^`]+)`", prose(text))


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_tables_are_read() -> None:
    """A table is read as rows of cells without its line of dashes, and a block of code is none."""
    page = "x\n| a | b |\n|---|--:|\n| 1 | `2` |\n\n```\n| no | no |\n```\n| c |\n|---|\n"
    assert tables(page) == [[["a", "b"], ["1", "`2`"]], [["c"]]]


# --- settings, codes, metrics, logs, routes -----------------------------------------------------------------

UNITS = {"_s": "s", "_ms": "ms", "_bytes": "bytes", "_tokens": "tokens", "_chars": "characters"}


def shown_default(value: object) -> str:
    """A default as docs/settings.md writes it."""
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_settings_are_documented() -> None:
    """docs/settings.md has each setting once, in the code's order, with its default, its unit and a reason."""
    rows = table(PAGES["docs/settings.md"], "variable", "default", "unit", "reason")
    fields = msgspec.structs.fields(Settings)
    assert [row[:2] for row in rows] == [
        [f"`CHATD_{field.name.upper()}`", shown_default(field.default)] for field in fields
    ]
    for (_, _, unit, reason), field in zip(rows, fields, strict=True):
        named = [word for ending, word in UNITS.items() if field.name.endswith(ending)]
        assert not named or unit == named[0], field.name
        assert len(reason) > 10, field.name


@pytest.mark.parametrize("name", PAGES)
def test_named_settings_exist(name: str) -> None:
    """No page names a setting that chatd would not know."""
    told = set(re.findall(r"CHATD_[A-Z][A-Z_]*", PAGES[name]))
    assert unknown_names(dict.fromkeys(told, "")) == ()


def test_error_codes_are_documented() -> None:
    """SPEC.md has a row for each error code and for nothing else; the other pages name only codes that exist."""
    codes = {code.value for code in ErrorCode}
    rows = table(PAGES["protocols/SPEC.md"], "code", "again?")
    assert sorted(code(row[0])[0] for row in rows) == sorted(codes)
    for row in table(PAGES["docs/quick-actions.md"], "code", "when"):
        assert set(code(row[0])) <= codes


def test_close_codes_are_documented() -> None:
    """SPEC.md has a row for each close code and for nothing else; no page names one that does not exist."""
    codes = {str(code.value) for code in CloseCode}
    rows = table(PAGES["protocols/SPEC.md"], "code", "reason")
    assert sorted(row[0] for row in rows) == sorted(codes)
    for name, page in PAGES.items():
        told = set(re.findall(r"(?<![\d,.])4[05]\d\d(?![\d,])", page))
        # The two ends of the ranges of verdicts.
        assert told <= codes | {"4499"}, name


def metric_names() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name on ``/metrics`` to kind and labels, of every metric that is declared."""
    found = {}
    for name, value in vars(metrics).items():
        if name.isupper() and hasattr(value, "_labelnames"):
            ending = "_total" if value._type == "counter" else ""
            found[value._name + ending] = (value._type, tuple(value._labelnames))
    return found


def test_metrics_are_documented() -> None:
    """docs/metrics.md has each metric with its kind and labels and what to do, and no other; no page names another."""
    rows = table(PAGES["docs/metrics.md"], "metric", "kind", "labels", "counts", "what to do when it moves")
    told = {code(row[0])[0]: (row[1], tuple(code(row[2]))) for row in rows}
    assert told == metric_names()
    assert len(rows) == len(told)
    assert all(row[3] and row[4] for row in rows)
    for name, page in PAGES.items():
        assert set(re.findall(r"\bchatd_[a-z0-9_]+", page)) <= set(told), name


def test_metrics_that_never_move_are_told() -> None:
    """A metric that no code touches says "always 0" on its row, and one that is touched does not."""
    rows = table(PAGES["docs/metrics.md"], "metric", "kind")
    still = {code(row[0])[0] for row in rows if "always 0" in row[3]}
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "chatd").rglob("*.py"))
    untouched = {
        value._name + ("_total" if value._type == "counter" else "")
        for name, value in vars(metrics).items()
        if name.isupper() and hasattr(value, "_labelnames") and not re.search(rf"\bmetrics\.{name}\b", sources)
    }
    assert still == untouched


def logged() -> dict[str, set[str]]:
    """The events of all log lines in the code, with the names of their fields."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "chatd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            fields = {keyword.arg for keyword in node.keywords if keyword.arg not in (None, "at")}
            if ast.unparse(node.func) == "logger.log":
                # Lines of libraries pass through one handler, which calls them so.
                names = ["library", "library_error"]
            elif ast.unparse(node.func.value) == "log" and node.args and isinstance(node.args[0], ast.Constant):
                names = [str(node.args[0].value)]
            else:
                continue
            for name in names:
                found.setdefault(name, set()).update(str(field) for field in fields)
    return found


def test_log_events_are_documented() -> None:
    """docs/operations.md has each event of the log with its fields, and no other."""
    told = {code(row[0])[0]: set(code(row[1])) for row in table(OPERATIONS, "event", "fields", "meaning")}
    assert told == logged()


def test_log_fields_name_no_patient() -> None:
    """No field of a log line is about a patient or holds what somebody wrote."""
    fields = set().union(*logged().values())
    assert not [
        field for field in fields if re.search(r"patient_id|content|question|answer|text|token(?!s$|s_)|path", field)
    ]


def test_routes_are_documented() -> None:
    """docs/operations.md has each HTTP route, and no other."""
    told = {route for row in table(OPERATIONS, "route", "who may", "what") for route in code(row[0])}
    assert told == {route.path for route in endpoints.routes() if isinstance(route, Route | WebSocketRoute | Mount)}


def test_steps_are_documented() -> None:
    """docs/architecture.md tells the steps of a question under the code's names and in its order."""
    rows = table(PAGES["docs/architecture.md"], "step", "where", "what happens")
    assert tuple(code(row[0])[0] for row in rows) == STEPS


def test_scripts_are_documented() -> None:
    """docs/architecture.md has each Lua script of the session log."""
    rows = table(PAGES["docs/architecture.md"], "script", "what it does in one step")
    assert {code(row[0])[0] for row in rows} == {path.name for path in (ROOT / "chatd" / "replies").glob("*.lua")}


def test_hospital_file_example_is_one(tmp_path: Path) -> None:
    """The hospital.json on the page can be used as it stands."""
    (example,) = [block for block in blocks(OPERATIONS, "json") if "departments" in block]
    (tmp_path / "hospital.json").write_text(example, "utf-8")
    found = configured(tmp_path, is_demo=False, now=datetime(2026, 1, 15, tzinfo=UTC))
    assert found.hospital.critical_limits["haemoglobin"] == (7.0, None)
    assert [department.department_id for department in found.departments] == ["cardiology"]
    assert found.departments[0].actions


def test_handover_offer_stands_as_long_as_told() -> None:
    """docs/alerts.md tells the time after which an offer has ended, which nothing changes."""
    assert f"**An offer stands for {OFFER_S // 60} minutes**" in PAGES["docs/alerts.md"]


def test_readiness_example_is_one() -> None:
    """The body of /health/ready on the page has the fields of the code."""
    (body,) = [word for word in code(OPERATIONS) if word.startswith('{"ready"')]
    told = json.loads(body)
    assert list(told) == list(Readiness.__struct_fields__)
    assert msgspec.convert(told, Readiness).ready is True


# --- commands -----------------------------------------------------------------------------------------------


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``chatd WORDS --help`` prints."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def commands_of(capsys: pytest.CaptureFixture[str], *words: str) -> Iterator[tuple[str, ...]]:
    """Every command that does something, found in the help texts: ("up",), ("fhir", "import")."""
    shown = help_of(capsys, *words)
    inner = re.search(r"^commands:\n(.*?)(?:\n\n|\Z)", shown, flags=re.DOTALL | re.MULTILINE)
    if inner is None:
        yield words
        return
    for name in re.findall(r"^ {4}([a-z][a-z0-9]*)", inner[1], flags=re.MULTILINE):
        yield from commands_of(capsys, *words, name)


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", text)) - {"--help"}


def test_readme_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    """README's table has each command with each of its options, and no other."""
    told = {}
    for row in table(README, "command", "what it does"):
        (usage,) = code(row[0])
        words = re.match(r"chatd ((?:[a-z][a-z0-9]* ?)+)", usage)
        assert words is not None, usage
        told[tuple(words[1].split())] = options_in(usage)
    there = {words: options_in(help_of(capsys, *words)) for words in commands_of(capsys)}
    assert told == there


@pytest.mark.parametrize("name", PAGES)
def test_commands_on_pages_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each chatd command on a page exists, with each option that is shown beside it."""
    there = {words: options_in(help_of(capsys, *words)) for words in commands_of(capsys)}
    shown = code(PAGES[name])
    shown += [
        line for block in re.findall(r"```\w*\n(.*?)```", PAGES[name], flags=re.DOTALL) for line in block.splitlines()
    ]
    for usage in shown:
        for call in re.findall(r"(?<![\w/.-])(?:\.venv/bin/)?chatd ([a-z].*)", usage):
            words = tuple(re.findall(r"[a-z][a-z0-9]*", re.split(r" [^a-z]|$", call)[0]))
            known = [command for command in there if words[: len(command)] == command]
            assert known, f"chatd {call}"
            assert options_in(call) <= there[known[0]], f"chatd {call}"


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_on_pages_exist(name: str) -> None:
    """Each make target on a page stands in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    told = {word for shown in code(PAGES[name]) for word in re.findall(r"^make ([a-z-]+)", shown)}
    told |= {word for block in blocks(PAGES[name], "sh") for word in re.findall(r"^make ([a-z-]+)", block, re.M)}
    assert told <= targets


# --- links --------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name: str) -> None:
    """Each relative link leads to a file of the repository, and its anchor to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.resolve().is_relative_to(ROOT), target
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), target


def test_index_has_every_page() -> None:
    """docs/index.md links each page beside it."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", PAGES["docs/index.md"]))
    assert linked | {"index.md"} == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_pages_named_in_code_exist() -> None:
    """Each page that a comment, a docstring or a message sends a reader to exists."""
    named = set()
    for folder in (*PACKAGES, "clients", "loadtest", "tests", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".js", ".lua", ".html", ".json", "") and path.is_file():
                named |= set(re.findall(r"\bdocs/[\w-]+\.md\b", path.read_text("utf-8", "replace")))
    assert {page for page in named if not (ROOT / page).is_file()} == set()


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_no_foreign_place(name: str) -> None:
    """Addresses on pages are this machine's or reserved ones, and paths are routes or customary places."""
    page = PAGES[name]
    for host in re.findall(r"\b\w+://([^\s/:)`\"']*)", page):
        assert HOSTS.match(host) or (name == "NOTICE" and host in LICENCES), host
    for root in re.findall(r"(?<![\w./:><*)}\]`-])/([a-z][\w-]*)", re.sub(r"\w+://\S*", "", page)):
        assert root in ROOTS, root
    for path in re.findall(r"`/([\w-]*)[^`]*`", page):
        assert path in ROOTS | {"asyncapi", "schema"}, path


# --- the arrows between rooms -------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Dotted name to file of every module of the product."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """What a module imports, wherever in it the import stands: our own modules in full, others as written."""
    found = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
    return found


def tops(name: str) -> set[str]:
    return {module.partition(".")[0] for module in imports(name)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_point_down(name: str) -> None:
    """chatd may use context and protocols, context may use protocols, and nothing points back."""
    order = {"protocols": set(), "context": {"protocols"}, "chatd": {"context", "protocols"}}
    mine = name.partition(".")[0]
    ours = tops(name) & {*PACKAGES, "clients", "loadtest", "tests"}
    assert ours <= order[mine] | {mine}
    if mine == "protocols":
        assert tops(name) <= (sys.stdlib_module_names - {"asyncio"}) | {"msgspec", "protocols"}


def rooms() -> dict[str, int]:
    """The modules and packages below ``chatd`` with the number of their room in docs/architecture.md's table."""
    found: dict[str, int] = {}
    for number, row in enumerate(table(PAGES["docs/architecture.md"], "room", "modules", "what it does")):
        for module in code(row[1]):
            assert module not in found, f"{module} stands in two rooms"
            found[module] = number
    return found


def test_rooms_are_whole() -> None:
    """Each module and package of chatd stands in one room, and each that stands there exists."""
    there = {name.split(".")[1] for name in MODULES if name.startswith("chatd.")}
    assert set(rooms()) == there


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("chatd.")))
def test_rooms_use_what_is_above_them(name: str) -> None:
    """A module of chatd uses its own room and the rooms above it in docs/architecture.md's table."""
    number = rooms()
    mine = number[name.split(".")[1]]
    below = {module for module in imports(name) if module.startswith("chatd.") and number[module.split(".")[1]] > mine}
    assert below == set()


def test_rules_never_wait() -> None:
    """The rooms of plain rules know no event loop, no Redis, no database and no web server."""
    rules = [name for name in MODULES if name.startswith(("chatd.safety", "protocols"))]
    rules += ["context.layers", "context.budget", "context.compose", "chatd.actions.rules", "chatd.actions.catalogue"]
    rules += ["chatd.replies.facts", "chatd.replies.answer", "chatd.replies.choose", "chatd.replies.question"]
    for name in rules:
        assert not tops(name) & {"asyncio", "redis", "sqlalchemy", "starlette", "uvicorn", "structlog"}, name


def test_libraries_are_met_where_the_page_says() -> None:
    """Each library is imported in the modules that docs/architecture.md names, in all of them, and nowhere else."""
    told = {}
    for row in table(PAGES["docs/architecture.md"], "library", "where"):
        for library in row[0].split(", "):
            told[library] = code(row[1])
    met: dict[str, set[str]] = {}
    for name in MODULES:
        for top in tops(name) - sys.stdlib_module_names - set(PACKAGES):
            met.setdefault(top, set()).add(name)
    assert set(met) == set(told)
    for library, places in told.items():
        if places:
            strays = {n for n in met[library] if not any(n == place or n.startswith(f"{place}.") for place in places)}
            assert strays == set(), library
            for place in places:
                assert any(n == place or n.startswith(f"{place}.") for n in met[library]), (library, place)


def test_every_package_and_its_files_are_installed() -> None:
    """pyproject.toml names each package, and each file in one that is no module; an installation lacks nothing."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    files = [
        path.relative_to(ROOT)
        for folder in (*PACKAGES, "clients/web")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    packages = {".".join(file.parent.parts) for file in files if file.name == "__init__.py"}
    assert packages | {"clients.web"} == set(told["packages"])
    for file in files:
        package = ".".join(file.parent.parts)
        if file.suffix != ".py":
            assert any(file.match(pattern) for pattern in told["package-data"].get(package, ())), file


# --- what README says, done ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Hospital]:
    """A running ``chatd up`` with the demo hospital."""
    with hospital() as running:
        yield running


def test_readme_example_answers(place: Hospital, tmp_path: Path) -> None:
    """README's Python example, run as it stands, prints the answer that README describes."""
    (example,) = blocks(README, "python")
    script = tmp_path / "ask.py"
    script.write_text(example, "utf-8")
    (question,) = re.findall(r"^> (.+)$", README, flags=re.MULTILINE)
    server = place.url.replace("http", "ws", 1)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), server, place.token(), "7823", question],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for told in ("Troponin I 45 ng/mL", "V2-V6", "enicillin", "NEWS2", "STEMI", "tracing itself is not available"):
        assert told in done.stdout
    assert "Schedule Cath Lab" in done.stdout


def test_readme_shell_block_is_the_example() -> None:
    """The commands below the example name the command for a token and the example with its four arguments."""
    (block,) = [block for block in blocks(README, "sh") if "ask.py" in block]
    first, second = block.strip().splitlines()
    assert first == "TOKEN=$(.venv/bin/chatd token --user dr.santos.cardio --department cardiology)"
    (question,) = re.findall(r"^> (.+)$", README, flags=re.MULTILINE)
    assert second == f'.venv/bin/python ask.py ws://127.0.0.1:8080 "$TOKEN" 7823 "{question}"'


def test_readme_commands_work(place: Hospital, tmp_path: Path) -> None:
    """context show, schema and fhir import do what README's table says."""
    shown = place.run(
        *("context", "show", "--data-dir", "DIR", "--department", "cardiology"),
        *("--user", "dr.santos.cardio", "--patient", "7823", "--question", "Allergies?"),
    ).stdout
    layers = ("hospital", "department", "doctor", "patient", "session")
    assert all(f'"{layer}": {{' in shown and f"--- {layer} (" in shown for layer in layers)
    assert "--- question (" in shown
    assert "Allergies?" in shown
    assert json.loads(place.run("schema").stdout)["asyncapi"]
    assert json.loads(place.run("schema", "--json-schema").stdout)["$schema"]
    patient = {"resourceType": "Patient", "id": "p-1", "name": [{"family": "Prova", "given": ["Ana"]}]}
    file = tmp_path / "patient.json"
    file.write_text(json.dumps(patient), "utf-8")
    line = place.run("fhir", "import", "--data-dir", "DIR", "--department", "cardiology", str(file)).stdout
    assert json.loads(line) == {"patient_id": "p-1", "name": "Ana Prova", "resources": 1, "skipped": 0}


def test_health_bodies_are_those_on_the_page(place: Hospital) -> None:
    """/health, /health/live, /health/ready and /metrics answer with the fields that docs/operations.md shows."""
    told = {}
    for row in table(OPERATIONS, "request", "answer", "use it for"):
        told[code(row[0])[0]] = json.loads(code(row[1])[0])
    for path, body in told.items():
        with urlopen(place.url + path, timeout=20) as answer:  # noqa: S310 - our own server
            got = json.load(answer)
        assert list(got) == list(body)
        # The page shows a gateway with three phones, this one has as many as are connected just now.
        assert {**got, "active_connections": 3} == {**body, "active_connections": 3}
    with urlopen(f"{place.url}/metrics", timeout=20) as answer:  # noqa: S310 - our own server
        served = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), flags=re.MULTILINE))
    assert {name for name in served if not name.endswith("_created")} == set(metric_names())
