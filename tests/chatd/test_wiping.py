"""Memory that is freed is overwritten, where the C library can."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from chatd.wiping import is_on, variables
from tests.faults.canary_search import Searcher, memory_of
from tests.server import ROOT

# A word in texts of several sizes, copied, kept for a moment and dropped. Another goes first: at the first call of a
# library's function the loader leaves the processor's registers on the stack.
_HOLDER = """
import sys
from chatd import wiping
if sys.argv[1] == "on":
    wiping.begin_again()
def handle(word):
    kept = {n: (word + "x" * n).encode() * 3 for n in (1, 40, 3000, 300_000)}
    return sum(len(bytes.decode(each)) for each in kept.values())
print(flush=True)
for _ in range(2):
    handle("".join(chr(int(each)) for each in sys.stdin.readline().split()))
print(flush=True)
sys.stdin.readline()
"""
_WORD, _OTHER = "zqvkwxjyzqvkwxjy", "pleasantpleasant"


def _copies_left(how: str) -> int:
    """In how many forms the word is still in memory after everything was freed."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONMALLOC": "", "GLIBC_TUNABLES": ""},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        child.stdout.readline()
        # As numbers, so that what is typed is not the word.
        child.stdin.writelines(" ".join(str(ord(sign)) for sign in word) + "\n" for word in (_OTHER, _WORD))
        child.stdin.flush()
        child.stdout.readline()
        try:
            return len(Searcher([_WORD]).find_in(memory_of(child.pid), deep=False)[0])
        except PermissionError:
            pytest.skip("this system lets nobody read another process's memory")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="read through /proc, wiped by glibc")
def test_freed_words_are_found_in_memory_only_where_it_is_not_wiped() -> None:
    """The same program, with and without."""
    assert _copies_left("off") > 0
    assert _copies_left("on") == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's tunables")
def test_tunables_of_others_stay_and_twice_is_once() -> None:
    """What an operator set is kept, and a process that wipes does not begin again."""
    once = variables({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.perturb=1"})
    assert once["GLIBC_TUNABLES"].split(":")[0] == "glibc.malloc.arena_max=2"
    assert once["GLIBC_TUNABLES"].count("perturb") == 1
    assert variables(once) == once
    assert is_on(once)
    assert not is_on({})
