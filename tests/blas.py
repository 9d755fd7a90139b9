"""The matrix products of mlx's CPU build by OpenBLAS where the system has it.

The wheel for Linux brings the reference BLAS, which is an order of magnitude slower than what any Mac or GPU has: 256
tokens of a prompt at 100 million parameters took 28 CPU seconds with it and 2.0 with OpenBLAS 0.3.21 (Debian 12, one
thread). Whatever waits for prompts, or compares one side's prompts with the other's, runs with the second one:

    python -m tests.blas pytest -m inference
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Where Debian and its relatives put it, for both processors that such machines have.
PLACES = (
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
)


def fast_blas() -> dict[str, str]:
    """The environment of a process that shall compute with it; empty where the system has none, as on macOS."""
    found = next((place for place in PLACES if Path(place).exists()), None)
    # One thread: the engine, the library and the server beside it share two cores.
    return {} if found is None else {"LD_PRELOAD": found, "OPENBLAS_NUM_THREADS": "1"}


def restart(arguments: list[str]) -> None:
    """Become ``python ARGUMENTS`` with it: which library a process computes with is settled when it starts.

    Returns where it is so already, or where the system has none.
    """
    blas = fast_blas()
    if blas and os.environ.get("LD_PRELOAD") != blas["LD_PRELOAD"]:
        os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **blas})  # noqa: S606


if __name__ == "__main__":
    restart(["-m", *sys.argv[1:]])
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])  # noqa: S606
