"""The searcher for traces finds what is planted, in each form, and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.traces import traces, traces_below

WORD = "Zebrélia-5f3a9c"


@pytest.mark.parametrize(
    "plant",
    [
        lambda word: word.encode(),
        lambda word: word.upper().encode(),
        lambda word: word.encode("utf-16-le"),
        lambda word: word.encode("utf-16"),
        lambda word: json.dumps({"a": word}).encode(),
        lambda word: urllib.parse.quote(word).encode(),
        lambda word: repr(word.encode()).encode(),
        lambda word: word.encode().hex().encode(),
        lambda word: word.encode().hex().upper().encode(),
        *(lambda word, n=n: base64.b64encode(b"x" * n + word.encode() + b"tail") for n in range(7)),
        *(lambda word, n=n: base64.urlsafe_b64encode(b"\xff" * n + word.encode()) for n in range(4)),
        lambda word: b"ahead" + gzip.compress(b"x" * 999 + word.encode()) + b"behind",
        lambda word: gzip.compress(gzip.compress(json.dumps(word).encode())),
    ],
)
def test_traces_planted_word_is_found(plant: Callable[[str], bytes]) -> None:
    """A word is found in each form it may have on a disk, amid other bytes."""
    assert traces(b"\x00\x1f\x8b\x08" + plant(WORD) + b"\xff", [WORD, "Other-1234"])


def test_traces_finds_nothing_in_other_text() -> None:
    """Text without the word has no trace of it."""
    data = "Zebrélia-5f3a9d zebra".encode() + gzip.compress(b"nothing") + base64.b64encode(b"nothing")
    assert traces(data, [WORD]) == set()


def test_traces_below_looks_at_names_too(tmp_path: Path) -> None:
    """A file whose name holds the word is found, as is one whose content does."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"{WORD}.json").write_text("")
    (tmp_path / "content").write_text(WORD)
    (tmp_path / "clean").write_text("clean")
    assert sorted(Path(path).name for path in traces_below(tmp_path, [WORD])) == [f"{WORD}.json", "content"]
