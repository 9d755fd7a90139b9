"""Finds texts in bytes of any kind, however they were encoded on the way there: what the canary campaign looks with.

``Searcher(texts).find(data)`` names each text that is in ``data`` and in which form. Forms are UTF-8, UTF-16 and
UTF-32 in both orders, Latin-1, JSON with escapes (also JSON within JSON), percent-encoding, HTML entities, base64 at
each of its three alignments (both alphabets), hex in both cases, and each of these within gzip and zlib members, two
deep. Not found: text that is encrypted, that was compressed by another method, or that lies in pieces with something
else between them.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple
from urllib.parse import quote

#: A shorter text is found by chance in a gigabyte of noise.
LEAST_CHARS: Final = 8
#: Data is read in pieces of this size; each begins with the end of the one before.
CHUNK_BYTES: Final = 8 * 1024 * 1024
#: What one compressed member may grow to, and members within members.
MOST_INFLATED_BYTES: Final = 32 * 1024 * 1024
MOST_DEPTH: Final = 2
#: gzip (RFC 1952) with deflate; zlib (RFC 1950) with a window of 32 KiB at each of the four levels.
_MEMBER: Final = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
#: A member's input that is looked at in one piece; one that is longer is inflated as far as this.
_MEMBER_BYTES: Final = 4 * 1024 * 1024
#: Blocks of zeros hold nothing, and disks and memories are full of them; each leaves a few, which part its neighbours.
_ZEROS: Final = bytes(4096)
_FEW_ZEROS: Final = bytes(64)


class Hit(NamedTuple):
    """``text`` was found in ``form`` at ``offset`` bytes; within a compressed member, that of the member."""

    text: str
    form: str
    offset: int


def _base64_forms(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The characters of base64 that depend on ``data`` alone, for each number of bytes that may stand before it."""
    for before in range(3):
        end = (before + len(data)) * 8 // 6
        begin = -(-before * 8 // 6)
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            yield f"{name}+{before}", encode(bytes(before) + data)[begin:end]


def _texts(text: str) -> dict[str, bytes]:
    """``text`` as bytes, before anything that makes letters of bytes."""
    escaped = json.dumps(text)[1:-1]
    forms = {
        "utf-8": text.encode(),
        # The last zero byte may belong to what follows, the first one to what stands before.
        "utf-16-le": text.encode("utf-16-le").rstrip(b"\0"),
        "utf-16-be": text.encode("utf-16-be").lstrip(b"\0"),
        "utf-32-le": text.encode("utf-32-le").rstrip(b"\0"),
        "utf-32-be": text.encode("utf-32-be").lstrip(b"\0"),
        "json": escaped.encode(),
        "json in json": json.dumps(escaped)[1:-1].encode(),
        "percent": quote(text, safe="").encode(),
        "percent, blanks as plus": quote(text, safe=" ").replace(" ", "+").encode(),
        "html": html.escape(text).encode("ascii", "xmlcharrefreplace"),
    }
    with contextlib.suppress(UnicodeEncodeError):
        forms["latin-1"] = text.encode("latin-1")
    return forms


def forms(text: str, *, is_plain: bool = False) -> dict[bytes, str]:
    """Every form in which ``text`` is looked for, with its name; equal ones once, under the first name.

    ``is_plain``: those that are text alone, without base64 and hex.
    """
    found: dict[bytes, str] = {}
    texts = _texts(text)
    for name, data in texts.items():
        found.setdefault(data, name)
    for name in () if is_plain else ("utf-8", "utf-16-le", "utf-16-be", "json"):
        data = text.encode(name) if name.startswith("utf-16") else texts[name]
        for form, letters in _base64_forms(data):
            found.setdefault(letters, f"{form} of {name}")
        found.setdefault(data.hex().encode(), f"hex of {name}")
        found.setdefault(data.hex().upper().encode(), f"hex of {name}")
    return found


class Searcher:
    """Looks for ``texts``; holds no data between calls. ``is_plain`` as in ``forms``: several times as fast.

    Raises ValueError for a text of under 8 characters.
    """

    def __init__(self, texts: Iterable[str], *, is_plain: bool = False) -> None:
        self._forms: dict[bytes, tuple[str, str]] = {}
        for text in texts:
            if len(text) < LEAST_CHARS:
                raise ValueError(f"a text of under {LEAST_CHARS} characters is found by chance")
            for data, name in forms(text, is_plain=is_plain).items():
                self._forms.setdefault(data, (text, name))
        self._longest = max(map(len, self._forms), default=1)
        # What all begin with is in no piece that holds none of them, and takes one look where each text would take one.
        common = os.path.commonprefix([text for text, _ in self._forms.values()])  # noqa: RUF071 - letters are meant
        self._common = tuple(forms(common, is_plain=is_plain)) if len(common) >= LEAST_CHARS else ()

    def find(self, data: bytes, *, deep: bool = True) -> list[Hit]:
        """All that is in ``data``, each text once in each form. ``deep``: also within compressed members."""
        hits = self._found(data)
        return hits + self._members(data, MOST_DEPTH) if deep else hits

    def _found(self, data: bytes) -> list[Hit]:
        if not self._common:
            return [
                Hit(text, form, at) for needle, (text, form) in self._forms.items() if (at := data.find(needle)) >= 0
            ]
        hits: dict[tuple[str, str], Hit] = {}
        for begin, end in self._spans(data):
            near = data[begin:end]
            for needle, (text, form) in self._forms.items():
                if (text, form) not in hits and (at := near.find(needle)) >= 0:
                    hits[text, form] = Hit(text, form, begin + at)
        return list(hits.values())

    def _spans(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Where a text may be: around what all of them begin with, ascending, those that overlap as one."""
        places = sorted(match.start() for needle in self._common for match in re.finditer(re.escape(needle), data))
        begin = end = 0
        for place in places:
            if place - self._longest > end:
                if end:
                    yield begin, end
                begin = max(0, place - self._longest)
            end = place + self._longest
        if end:
            yield begin, end

    def _members(self, data: bytes, depth: int) -> list[Hit]:
        hits: list[Hit] = []
        for match in _MEMBER.finditer(data):
            at = match.start()
            inflated = _inflate(memoryview(data)[at : at + _MEMBER_BYTES])
            if len(inflated) < LEAST_CHARS:
                continue
            within = self.find(inflated, deep=False)
            if depth > 1:
                within += self._members(inflated, depth - 1)
            hits += [Hit(hit.text, f"{hit.form} in a compressed member", at) for hit in within]
        return hits

    def find_in(self, pieces: Iterable[bytes], *, deep: bool = True) -> tuple[list[Hit], int]:
        """The same over a stream of pieces, and how many bytes it had. A text that lies over a border is found; a
        compressed member is followed to the end of the piece after the one it begins in. Offsets leave out zeros."""
        hits: dict[tuple[str, str], Hit] = {}
        before, begin, size = b"", 0, 0
        fresh = bytearray()

        def look() -> None:
            nonlocal before, begin
            data = before + fresh
            fresh.clear()
            for hit in self.find(data, deep=deep):
                hits.setdefault((hit.text, hit.form), hit._replace(offset=begin + hit.offset))
            before = data[-(self._longest + (_MEMBER_BYTES if deep else 0)) :]
            begin += len(data) - len(before)

        for piece in pieces:
            size += len(piece)
            fresh += _without_zeros(piece)
            if len(fresh) >= CHUNK_BYTES:
                look()
        look()
        return list(hits.values()), size


def _without_zeros(piece: bytes) -> bytes:
    if piece == bytes(len(piece)):
        return _FEW_ZEROS
    blocks = (piece[at : at + len(_ZEROS)] for at in range(0, len(piece), len(_ZEROS)))
    return b"".join(_FEW_ZEROS if block == _ZEROS else block for block in blocks)


def _inflate(data: bytes | memoryview) -> bytes:
    """As much of the gzip or zlib member that ``data`` begins with as can be had; empty where it is none."""
    worker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    out = b""
    # In steps: a member that breaks off has shown what stands before.
    for begin in range(0, len(data), 4096):
        try:
            out += worker.decompress(data[begin : begin + 4096], MOST_INFLATED_BYTES - len(out))
        except zlib.error:
            break
        if worker.eof or len(out) >= MOST_INFLATED_BYTES:
            break
    return out


# --- where it looks -----------------------------------------------------------------------------------------


def pieces_of(file: IO[bytes], most_bytes: int | None = None) -> Iterator[bytes]:
    """The file from where it stands, in pieces, to its end or for ``most_bytes``."""
    left = most_bytes
    while left is None or left > 0:
        piece = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


def files_below(folders: Sequence[Path], *, changed_since_s: float = 0.0, without: Sequence[Path] = ()) -> list[Path]:
    """Regular files below ``folders`` that were written, made or renamed since; what vanishes meanwhile is left out.

    Symbolic links are not followed and other file systems are entered. ``without``: folders that are left out.
    """
    found, left_out = [], {str(each) for each in without}
    for folder in folders:
        for place, folders_in, names in os.walk(folder):
            folders_in[:] = [name for name in folders_in if os.path.join(place, name) not in left_out]
            for name in names:
                path = Path(place, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and max(status.st_mtime, status.st_ctime) >= changed_since_s:
                    found.append(path)
    return found


def deleted_files(pid: int) -> list[Path]:
    """Files without a name that process ``pid`` holds open, as paths below /proc; none where there is no /proc."""
    found = []
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []
    for link in links:
        try:
            if str(link.readlink()).endswith(" (deleted)") and stat.S_ISREG(link.stat().st_mode):
                found.append(link)
        except OSError:
            continue
    return found


def memory_of(pid: int) -> Iterator[bytes]:
    """The memory of process ``pid`` that it may have written, region by region; raises OSError where /proc is not, or
    denies. Borders between regions are borders of the pieces too. Left out: what is mapped from files, read-only."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.splitlines():
            span, rights, _, _, inode, *_ = line.split()
            if "r" not in rights or ("w" not in rights and (inode != "0" or line.endswith("]"))):
                continue
            begin, end = (int(each, 16) for each in span.split("-"))
            while begin < end:
                try:
                    memory.seek(begin)
                    piece = memory.read(min(CHUNK_BYTES, end - begin))
                except (OSError, OverflowError):
                    break  # a region that has gone, or whose file is shorter than it
                if not piece:
                    break
                begin += len(piece)
                yield piece
