"""Compares every locked version with the known vulnerabilities of an OSV database, and fails when it could not look.

The database is what https://osv.dev publishes for the ecosystem PyPI: a folder of JSON files, or one zip of them. It is
read from a path, so that a hospital without the internet looks into its own mirror, or fetched from an address.

Exit status: 0 nothing known, 1 a locked version is known to be vulnerable, 2 it could not look.

Why not pip-audit: it asks a service for each package and reads no mirrored dump, which is all that a machine inside
has.
Both get their Python advisories from the same database.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from locked import LockError, Pin, lists, read
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

#: Every advisory of the ecosystem, made anew each day.
PUBLISHED = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
#: The whole ecosystem is some tens of megabytes; more than this is no database.
MAX_FETCH_BYTES = 512 * 1024 * 1024
_FETCH_S = 60.0
#: The database has had over ten thousand for years; one with fewer than this was not copied whole.
LEAST = 1_000


class CouldNotLook(Exception):
    """The database cannot be had, read or believed: nothing is known about the locked versions."""


@dataclass(frozen=True)
class Finding:
    """One vulnerability of one locked version. ``fixed`` are the versions that end it, as far as they are told."""

    name: str
    version: str
    advisory: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str
    lists: tuple[str, ...]


# --- what an advisory says ----------------------------------------------------------------------------------


def _version(text: object, advisory: str) -> Version:
    try:
        return Version(str(text))
    except InvalidVersion:
        raise CouldNotLook(f"{advisory}: {str(text)[:40]!r} is no version") from None


def _within(events: Sequence[Mapping[str, object]], version: Version, advisory: str) -> bool:
    """Whether a range of the OSV schema holds the version: events in order, the last one at or below it decides."""
    steps: list[tuple[Version, int, bool]] = []
    for event in events:
        for kind, value in event.items():
            if kind == "introduced":
                at = Version("0.dev0") if value == "0" else _version(value, advisory)
                steps.append((at, 1, True))
            elif kind == "fixed":
                steps.append((_version(value, advisory), 0, False))
            elif kind == "last_affected":
                last = _version(value, advisory)
                if version > last:
                    steps.append((last, 2, False))
            elif kind == "limit":
                if value != "*":
                    steps.append((_version(value, advisory), 0, False))
            else:
                raise CouldNotLook(f"{advisory}: an event {kind[:40]!r} is not known")
    inside = False
    for at, _, begins in sorted(steps):
        if at <= version:
            inside = begins
    return inside


def affects(entry: Mapping[str, Any], pin: Pin) -> tuple[bool, tuple[str, ...]]:
    """Whether an advisory is about this version, and the versions that end it.

    A package that is named with neither versions nor ranges counts as affected in every version.

    Raises:
        CouldNotLook: what it says about this package is not understood.
    """
    advisory = str(entry["id"])
    # Without its local part: a build of torch for the CPU has what torch has.
    version = Version(_version(pin.version, pin.name).public)
    hit, fixed = False, []
    for affected in entry.get("affected", ()):
        package = affected.get("package", {})
        if str(package.get("ecosystem", "")).partition(":")[0] != "PyPI":
            continue
        if canonicalize_name(str(package.get("name", ""))) != pin.name:
            continue
        ranges = [each for each in affected.get("ranges", ()) if each.get("type") in ("ECOSYSTEM", "SEMVER")]
        named = affected.get("versions") or ()
        if not named and not ranges:
            hit = True
        # Odd versions are passed over in the list, which is exact; in a range they would change the order.
        hit = hit or any(_same(each, version) for each in named)
        for each in ranges:
            hit = hit or _within(each.get("events", ()), version, advisory)
            fixed += [str(event["fixed"]) for event in each.get("events", ()) if "fixed" in event]
    return hit, tuple(dict.fromkeys(fixed))


def _same(text: object, version: Version) -> bool:
    try:
        return Version(str(text)) == version
    except InvalidVersion:
        return False


# --- the database -------------------------------------------------------------------------------------------


def _documents(place: Path | io.BytesIO) -> Iterator[tuple[str, bytes]]:
    if isinstance(place, Path) and place.is_dir():
        for path in sorted(place.rglob("*.json")):
            yield path.name, path.read_bytes()
        return
    with zipfile.ZipFile(place) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield name, archive.read(name)


def load(place: Path | io.BytesIO) -> Iterator[dict[str, Any]]:
    """The advisories of a folder or a zip, withdrawn ones too.

    Raises:
        CouldNotLook: it cannot be read, or one document is no advisory.
    """
    try:
        for name, text in _documents(place):
            try:
                entry = json.loads(text)
                if not (isinstance(entry["id"], str) and isinstance(entry["modified"], str)):
                    raise TypeError
                if not isinstance(entry.get("affected", []), list):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise CouldNotLook(f"{name[:80]} is no advisory") from None
            yield entry
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        source = str(place) if isinstance(place, Path) else "what was fetched"
        raise CouldNotLook(f"{source}: {type(error).__name__}") from None


def examine(
    locks: Mapping[str, Iterable[Pin]],
    database: Iterable[Mapping[str, Any]],
    *,
    now: datetime,
    max_age: timedelta,
    least: int = LEAST,
) -> tuple[list[Finding], int]:
    """Findings in the order of names, and how many advisories were looked at.

    Raises:
        CouldNotLook: fewer than ``least`` advisories about Python packages, the newest is older than ``max_age``, or
            one of those about a locked package is not understood.
    """
    pins: dict[tuple[str, str], Pin] = {}
    where: dict[tuple[str, str], list[str]] = {}
    by_name: dict[str, list[Pin]] = {}
    for name, those in locks.items():
        for pin in those:
            key = (pin.name, pin.version)
            if key not in pins:
                pins[key] = pin
                by_name.setdefault(pin.name, []).append(pin)
            if name not in where.setdefault(key, []):
                where[key].append(name)
    found, looked_at, newest = [], 0, datetime.min.replace(tzinfo=UTC)
    for entry in database:
        about = set()
        try:
            for affected in entry.get("affected", ()):
                package = affected.get("package", {})
                if str(package.get("ecosystem", "")).partition(":")[0] == "PyPI":
                    about.add(canonicalize_name(str(package.get("name", ""))))
            modified = datetime.fromisoformat(str(entry["modified"]))
            newest = max(newest, modified if modified.tzinfo else modified.replace(tzinfo=UTC))
        except (AttributeError, TypeError, ValueError):
            raise CouldNotLook(f"{str(entry.get('id'))[:80]} is not understood") from None
        if not about:
            continue
        looked_at += 1
        if entry.get("withdrawn"):
            continue
        for pin in (pin for name in sorted(about) for pin in by_name.get(name, ())):
            try:
                hit, fixed = affects(entry, pin)
            except (AttributeError, TypeError, KeyError):
                raise CouldNotLook(f"{str(entry.get('id'))[:80]} is not understood") from None
            if hit:
                summary = str(entry.get("summary") or "").split("\n")[0][:100]
                aliases = tuple(str(alias) for alias in entry.get("aliases") or ())
                lists_of = tuple(where[pin.name, pin.version])
                found.append(Finding(pin.name, pin.version, str(entry["id"]), aliases, fixed, summary, lists_of))
    if looked_at < max(least, 1):
        raise CouldNotLook(f"{looked_at} advisories about Python packages: the database is not whole")
    if now - newest > max_age:
        raise CouldNotLook(f"the newest advisory is of {newest.date()}: fetch the database anew")
    return sorted(found, key=lambda each: (each.name, each.advisory)), looked_at


# --- the command --------------------------------------------------------------------------------------------


def fetch(url: str) -> io.BytesIO:
    """The zip at an address, in memory.

    Raises:
        CouldNotLook: it cannot be had.
    """
    if not url.startswith("https://"):
        raise CouldNotLook("only https:// addresses are fetched")
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_S) as answer:  # noqa: S310 - https alone, see above
            body = answer.read(MAX_FETCH_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CouldNotLook(f"{url}: {type(error).__name__}") from None
    if len(body) > MAX_FETCH_BYTES:
        raise CouldNotLook(f"{url}: more than {MAX_FETCH_BYTES} bytes")
    return io.BytesIO(body)


def main(arguments: Sequence[str] | None = None, *, now: datetime | None = None) -> int:
    """Print what is known about the locked versions; the exit status is that of the module's text."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--database", type=Path, help="folder or zip of OSV documents, mirrored inside")
    place.add_argument("--url", default=PUBLISHED, help="where to fetch the zip without --database (%(default)s)")
    parser.add_argument(
        "--max-age-days", type=float, default=14.0, help="an older database knows too little (%(default)g)"
    )
    parser.add_argument("--least", type=int, default=LEAST, help="advisories that a whole database has (%(default)s)")
    parser.add_argument(
        "--ignore", metavar="ID", action="append", default=[], help="an advisory that was judged; repeat"
    )
    parser.add_argument("list", type=Path, nargs="*", help="lists of pinned versions (all of requirements/)")
    given = parser.parse_args(arguments)
    try:
        locks = {path.name: read(path) for path in given.list or lists()}
        source = given.database if given.database else fetch(given.url)
        entries = (entry for entry in load(source) if not {entry["id"], *_aliases(entry)} & set(given.ignore))
        age = timedelta(days=given.max_age_days)
        at = now or datetime.now(UTC)
        findings, looked_at = examine(locks, entries, now=at, max_age=age, least=given.least)
    except (CouldNotLook, LockError) as error:
        print(f"audit-dependencies: could not look: {error}", file=sys.stderr)
        return 2
    for each in findings:
        names = ", ".join((each.advisory, *each.aliases))
        mend = f"fixed in {', '.join(each.fixed)}" if each.fixed else "no fix told"
        print(f"{each.name} {each.version} ({', '.join(each.lists)}): {names}: {mend}: {each.summary}")
    for name in given.ignore:
        print(f"ignored: {name}")
    count = len({(pin.name, pin.version) for pins in locks.values() for pin in pins})
    print(f"{count} locked versions, {looked_at} advisories, {len(findings)} known vulnerabilities")
    return 1 if findings else 0


def _aliases(entry: Mapping[str, Any]) -> tuple[str, ...]:
    told = entry.get("aliases")
    return tuple(str(alias) for alias in told) if isinstance(told, list) else ()


if __name__ == "__main__":
    sys.exit(main())
