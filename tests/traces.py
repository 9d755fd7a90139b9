"""Finds a word in bytes, however it was written there: the searcher behind "no word of a patient on disk"."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

_GZIP = b"\x1f\x8b\x08"
#: A planted or real member is far smaller; the bound keeps a bomb from filling the memory.
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024


def spellings(word: str) -> dict[str, bytes]:
    """Every form in which ``word`` may stand in a file, by the form's name."""
    plain = word.encode()
    forms = {
        "utf-8": plain,
        "utf-16le": word.encode("utf-16-le"),
        "utf-16be": word.encode("utf-16-be"),
        "json": json.dumps(word)[1:-1].encode(),
        "percent": "".join(f"%{byte:02x}" if byte > 127 else chr(byte) for byte in plain).encode(),
        "repr": repr(plain)[2:-1].encode(),
        "hex": plain.hex().encode(),
        "hex of utf-16le": word.encode("utf-16-le").hex().encode(),
    }
    for shift in range(3):
        # What stands before decides how the six-bit groups fall; the groups that touch neighbours are left out.
        packed = base64.b64encode(b"\0" * shift + plain)
        whole = packed[-(-shift * 8 // 6) : len(packed) - (4 if (shift + len(plain)) % 3 else 0)]
        forms[f"base64+{shift}"] = whole
        forms[f"base64url+{shift}"] = whole.replace(b"+", b"-").replace(b"/", b"_")
    return forms


def traces(data: bytes, words: list[str]) -> set[tuple[str, str]]:
    """(word, form) of each word found in ``data``, also within gzip members."""
    found = set()
    folded = data.lower()
    for word in words:
        for case in {word, word.lower(), word.upper()}:
            for form, needle in spellings(case).items():
                # Base64 says different things in different cases.
                haystack, wanted = (data, needle) if form.startswith("base64") else (folded, needle.lower())
                if wanted in haystack:
                    found.add((word, form))
    for member in _unpacked(data):
        found |= {(word, f"gzip of {form}") for word, form in traces(member, words)}
    return found


def _unpacked(data: bytes) -> Iterator[bytes]:
    at = data.find(_GZIP)
    while at >= 0:
        unpacker = zlib.decompressobj(wbits=31)
        with contextlib.suppress(zlib.error):
            yield unpacker.decompress(data[at:], _MAX_UNPACKED_BYTES)
        at = data.find(_GZIP, at + 1)


def traces_below(folder: Path, words: list[str]) -> dict[str, set[tuple[str, str]]]:
    """What ``traces`` finds in names and contents of all files below ``folder``, by path; sockets have no content."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(folder.rglob("*")):
        here = traces(str(path.relative_to(folder)).encode(), words)
        if path.is_file():
            here |= traces(path.read_bytes(), words)
        if here:
            found[str(path)] = here
    return found
