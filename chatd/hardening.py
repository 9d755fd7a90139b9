"""What a process of chatd asks of its system before it holds anybody's words: no dump of its memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import Final

#: Source: prctl(2), linux/prctl.h
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


def no_core_dumps() -> bool:
    """Have the system write no core file of this process, nor of those that it starts; whether that is so now.

    The limit alone does not hold where dumps go to a program by a pipe (core(5)): on Linux the process is made one that
    is not dumped at all. That ends with an exec, so each process asks for itself. Called twice it changes nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return is_without_core_dumps()


def is_without_core_dumps() -> bool:
    """Whether no core file of this process can be written."""
    is_limited = resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    if not sys.platform.startswith("linux"):
        return is_limited
    dumpable: int = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return is_limited and dumpable != 1
