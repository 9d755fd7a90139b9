"""The gateway process: room for the phones' sockets, and the path that it listens on.

A limit that was lowered stays so, hence a process for each.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chatd.serve import unix_socket
from chatd.settings import SettingsError

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


def test_unix_socket_takes_a_free_path_and_one_that_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path is none; a free one and the socket of a killed gateway are taken, as absolute paths."""
    monkeypatch.chdir(tmp_path)
    assert unix_socket("") is None
    assert unix_socket("a.sock") == str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind("a.sock")
    assert unix_socket("a.sock") == str(tmp_path / "a.sock")


def test_unix_socket_is_not_taken_from_a_gateway_that_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on which somebody listens, and a file of another kind, are refused and stay as they are."""
    monkeypatch.chdir(tmp_path)  # the whole path may be longer than a socket's may be
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind("a.sock")
        other.listen()
        with pytest.raises(SettingsError, match="listens"):
            unix_socket("a.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as phone:
            phone.connect("a.sock")
    Path("a.txt").write_text("a file")
    with pytest.raises(SettingsError, match="no socket"):
        unix_socket("a.txt")
    assert Path("a.txt").read_text() == "a file"
