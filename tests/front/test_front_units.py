"""The units and property lists that come with chatd: their tools accept them, and they hold what they promise."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
LISTS = sorted((DEPLOY / "launchd").glob("*.plist"))
#: systemd's own measure, 0 to 10; below 2 it calls a unit well protected.
MOST_EXPOSED = 2.0


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``systemd-analyze``; skips where the machine has none (it is no part of what chatd needs)."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_exposes_little(unit: Path) -> None:
    """systemd's own measure of what a unit may see and do stays below 2 of 10."""
    done = analyze("security", "--offline=yes", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) < MOST_EXPOSED


def test_units_have_no_word_that_systemd_does_not_know(tmp_path: Path) -> None:
    """``systemd-analyze verify`` complains of nothing but programs that are not installed here."""
    names = []
    for path in (*UNITS, *sorted((DEPLOY / "systemd").glob("*.timer"))):
        names.append(path.name.replace("@", "@a"))
        (tmp_path / names[-1]).write_text(path.read_text())
    done = analyze("verify", *(str(tmp_path / name) for name in names))
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "Unknown" in line]
    assert complaints == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_leaves_no_core_and_no_words_of_a_command(unit: Path) -> None:
    """No unit writes core dumps, and none carries a password or a key in its command or environment."""
    text = unit.read_text()
    assert "LimitCORE=0" in text
    assert not re.search(r"(?i)^(ExecStart|Environment)=.*(password|secret|://[^ ]*:[^ ]*@)", text, re.M)


def test_there_are_lists_for_all_processes() -> None:
    """Two gateways, the worker, Redis and nginx."""
    assert [path.stem.split(".", 1)[1] for path in LISTS] == ["gateway.a", "gateway.b", "infer", "nginx", "redis"]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_list_is_read_and_has_what_launchd_needs(path: Path) -> None:
    """The label is the file's name, the process is kept alive, leaves no core, and has time to say goodbye."""
    job = plistlib.loads(path.read_bytes())
    assert job["Label"] == path.stem
    assert job["KeepAlive"] is True
    assert job["HardResourceLimits"]["Core"] == 0
    assert job["ExitTimeOut"] >= (20 if "gateway" in path.stem else 10)
    assert job["GroupName"] == "_chatd"
