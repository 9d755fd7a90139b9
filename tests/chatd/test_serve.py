"""The gateway process: room for the phones' sockets, and the path that it listens on.

A limit that was lowered stays so, hence a process for each case.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chatd.serve import unix_socket
from chatd.settings import SettingsError

#: Each case in a fork of one process: what is imported for it costs more than all of them.
TRY = """
import os, resource, sys
from chatd.serve import make_room
for case in sys.argv[1:]:
    soft, hard, wanted = map(int, case.split(","))
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        make_room(wanted)
        print("now", *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""

#: Soft and hard limit, what is wanted; then what the soft one becomes, and whether a line says that it is too little.
CASES = {
    "raised": (256, 1024, 600, 600, False),
    "hard limit below": (256, 300, 600, 300, True),
    "enough": (700, 1024, 600, 700, False),
}


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """What each case has printed: without a set-up log, its lines go to the standard output."""
    cases = [",".join(map(str, case[:3])) for case in CASES.values()]
    done = subprocess.run([sys.executable, "-c", TRY, *cases], capture_output=True, text=True, check=True)
    found: list[list[str]] = [[]]
    for line in done.stdout.splitlines():
        found[-1].append(line)
        if line.startswith("now "):
            found.append([])
    return dict(zip(CASES, found[:-1], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_make_room_raises_the_soft_limit(told: dict[str, list[str]], name: str) -> None:
    """The soft limit of open files becomes what the phones need, as far as the hard one lets it; else it is logged."""
    _, hard, wanted, then, is_told = CASES[name]
    *lines, limits = told[name]
    assert limits == f"now {then} {hard}"
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
