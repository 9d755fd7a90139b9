"""The hash-locked lists of requirements/, read: what each pins, for which platforms, by which hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?:\s|$)")


class LockError(ValueError):
    """A list is missing, pins nothing, or has a line that pins no version; the text names the file."""


@dataclass(frozen=True)
class Pin:
    """One line of a list. ``name`` is the index's own form of it; ``marker`` is empty where it counts everywhere."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]


def read(path: Path) -> list[Pin]:
    """The pins of one list, in its order.

    Raises:
        LockError: no such file, no pin in it, or a line that is not ``name==version`` with hashes: a list that is
            half understood would be half looked at.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise LockError(f"{path}: {type(error).__name__}") from None
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            wanted = Requirement(line.partition("--hash=")[0].strip())
        except InvalidRequirement:
            raise LockError(f"{path}: not a requirement: {line[:60]}") from None
        (only,) = list(wanted.specifier) if len(wanted.specifier) == 1 else (None,)
        hashes = tuple(_HASH.findall(line))
        if only is None or only.operator != "==" or "*" in only.version or not hashes:
            raise LockError(f"{path}: not pinned by version and hash: {wanted.name}")
        found.append(Pin(canonicalize_name(wanted.name), only.version, str(wanted.marker or ""), hashes))
    if not found:
        raise LockError(f"{path}: pins nothing")
    return found


def lists(folder: Path = ROOT / "requirements") -> list[Path]:
    """All lists, by name.

    Raises:
        LockError: there is none.
    """
    found = sorted(folder.glob("*.txt"))
    if not found:
        raise LockError(f"{folder}: no list")
    return found
