"""Freed memory is overwritten: what a person wrote is gone from a process once nothing there needs it.

Python frees its strings without touching their bytes, which then lie about until the memory is used again. No code of
chatd can reach the copies that libraries make; the C library sees every one of them when it is freed. So the processes
that handle words are started with Python's allocator out of the way, and the C library's told to overwrite.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Final

#: What freed bytes are overwritten with; any value but 0 turns it on.
_FILL: Final = 0x55
#: glibc's cache per thread would keep what it holds as it was. Source: glibc manual, "Memory Allocation Tunables".
_TUNABLES: Final = (f"glibc.malloc.perturb={_FILL}", "glibc.malloc.tcache_count=0")


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment of a process must hold so that it wipes; empty where the system's C library cannot.

    Tunables that somebody has set stay, but for these two.
    """
    if sys.platform == "darwin":
        return {"PYTHONMALLOC": "malloc", "MallocScribble": "1"}
    if platform.libc_ver()[0] != "glibc":
        return {}
    ours = {each.partition("=")[0] for each in _TUNABLES}
    theirs = [
        each for each in environ.get("GLIBC_TUNABLES", "").split(":") if each and each.partition("=")[0] not in ours
    ]
    return {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": ":".join([*theirs, *_TUNABLES])}


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether a process that was started with ``environ`` wipes what it frees."""
    wanted = variables(environ)
    return bool(wanted) and all(environ.get(name) == value for name, value in wanted.items())


def begin_again() -> None:
    """Begin this process anew, as it was called and under its own id, with memory that is wiped.

    Does nothing where it wipes already or cannot. An allocator cannot be changed once it has been used.
    """
    if variables(os.environ) and not is_on(os.environ):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables(os.environ)})  # noqa: S606 - itself
