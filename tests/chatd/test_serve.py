"""The gateway process: room for the phones' sockets. A limit that was lowered stays so, hence a process for each."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRY = """
import resource, sys
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from chatd.serve import make_room
make_room(wanted)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "then", "is_told"),
    [(256, 1024, 600, 600, False), (256, 300, 600, 300, True), (700, 1024, 600, 700, False)],
    ids=["raised", "hard limit below", "enough"],
)
def test_make_room_raises_the_soft_limit(soft: int, hard: int, wanted: int, then: int, is_told: bool) -> None:
    """The soft limit of open files becomes what the phones need, as far as the hard one lets it; else it is logged."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, *map(str, (soft, hard, wanted))], capture_output=True, text=True, check=True
    )
    # Without a set-up log, its lines go to the standard output.
    *lines, limits = done.stdout.splitlines()
    assert limits == f"{then} {hard}"
    assert [("few_files" in line, f"wanted={wanted}" in line) for line in lines] == [(True, True)] * is_told
