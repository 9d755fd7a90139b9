"""The searcher of the canary campaign finds a text however it was encoded, and says nothing where there is none."""

from __future__ import annotations

import base64
import gzip
import json
import os
import secrets
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.canary_search import LEAST_CHARS, Searcher, deleted_files, files_below, memory_of, pieces_of

TEXT = "zqçvkwxj ürgent 01 mg"
ENCODERS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-16": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32-le"),
    "latin-1": lambda text: text.encode("latin-1"),
    "json": lambda text: json.dumps({"content": text}).encode(),
    "json in json": lambda text: json.dumps(json.dumps([text])).encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, one byte before": lambda text: base64.b64encode(b"x" + text.encode() + b"y"),
    "base64, two bytes before": lambda text: base64.urlsafe_b64encode(b"xx" + text.encode() + b"yyy"),
    "base64 of utf-16": lambda text: base64.b64encode(text.encode("utf-16-le")),
    "hex": lambda text: text.encode().hex().encode(),
    "hex, upper case": lambda text: text.encode().hex().upper().encode(),
    "percent": lambda text: quote(text, safe="").encode(),
    "form": lambda text: quote_plus(text).encode(),
    "gzip": lambda text: gzip.compress(f"before {text} after".encode()),
    "zlib": lambda text: zlib.compress(json.dumps(text).encode(), 9),
    "gzip in zlib": lambda text: zlib.compress(gzip.compress(text.encode("utf-16-le"))),
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_text_is_found_in_each_encoding(encoding: str) -> None:
    """Between other bytes, and not when it is another text."""
    data = b"\0noise=\x78\x9c" + ENCODERS[encoding](TEXT) + b"\0more"
    assert [hit.text for hit in Searcher([TEXT]).find(data)][:1] == [TEXT]
    assert Searcher(["another text of this kind"]).find(data) == []


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(blacklist_categories=["Cs"], min_codepoint=33), min_size=LEAST_CHARS, max_size=30),
    encoding=st.sampled_from(sorted(ENCODERS)),
    before=st.binary(max_size=60),
    after=st.binary(max_size=60),
    piece_bytes=st.integers(min_value=1, max_value=80),
)
def test_any_text_is_found_over_the_borders_of_pieces(
    text: str, encoding: str, before: bytes, after: bytes, piece_bytes: int
) -> None:
    """Whatever stands around it, and wherever a stream of pieces is cut."""
    if encoding == "latin-1":
        text = text.encode("latin-1", "replace").decode("latin-1")
    data = before + ENCODERS[encoding](text) + after
    pieces = (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
    hits, size = Searcher([text]).find_in(pieces)
    assert {hit.text for hit in hits} == {text}
    assert size == len(data)


def test_noise_holds_nothing() -> None:
    """Random bytes, base64 and members of it give no hit."""
    noise = secrets.token_bytes(200_000)
    data = noise + base64.b64encode(noise) + zlib.compress(noise)
    assert Searcher([TEXT, "kkqwvxzj"]).find(data) == []


def test_a_short_text_is_refused() -> None:
    """It would be found by chance, and a search that cannot fail proves nothing."""
    with pytest.raises(ValueError, match="by chance"):
        Searcher(["short"])


def test_files_are_found_by_the_time_of_their_last_change(tmp_path: Path) -> None:
    """New ones and none that is left out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a/new", "out/new"):
        (tmp_path / name).write_text("x")
    assert files_below([tmp_path], without=[tmp_path / "out"]) == [tmp_path / "a/new"]
    later_s = (tmp_path / "a/new").stat().st_ctime + 3600
    assert files_below([tmp_path], changed_since_s=later_s) == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_deleted_files_and_memory_of_a_process_are_read() -> None:
    """A file without a name, and a text that only lives in another process."""
    with tempfile.TemporaryFile() as file:
        file.write(TEXT.encode())
        file.flush()
        found = []
        for path in deleted_files(os.getpid()):
            with path.open("rb") as again:
                found += Searcher([TEXT]).find_in(pieces_of(again))[0]
    assert found
    script = "import sys; word = sys.stdin.readline() * 3; print(flush=True); sys.stdin.readline()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        child.stdin.write(f"{TEXT}\n")
        child.stdin.flush()
        child.stdout.readline()
        try:
            hits, size = Searcher([TEXT]).find_in(memory_of(child.pid), deep=False)
        except PermissionError:
            pytest.skip("this system lets nobody read another process's memory")
    assert hits
    assert size > 1_000_000
