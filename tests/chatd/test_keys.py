"""Where the sealing keys come from, and that new ones are taken while a process runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatd import keys
from chatd.keys import KeySource, LiveKeys, from_keychain, source_of
from chatd.places import Places
from chatd.settings import Settings, SettingsError
from context.seal import KeyRing, KeyRingError, Sealer, SealError

AAD = b"chatd:test"


def written(path: Path, ring: KeyRing) -> KeySource:
    """The ring in a file, as an operator puts it there: another file, moved into place."""
    ring.save(path)
    return KeySource(kind="file", where=str(path))


# --- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "environ", "kind"),
    [
        ({}, {}, "file"),
        ({"seal_keys": "k1:x"}, {"CREDENTIALS_DIRECTORY": "DIR"}, "text"),
        ({"seal_key_file": "/etc/chatd/keys/seal.keys"}, {"CREDENTIALS_DIRECTORY": "DIR"}, "file"),
        ({"seal_key_file": "DIR/other"}, {"CREDENTIALS_DIRECTORY": "DIR"}, "credential"),
        ({"seal_keychain": "chatd"}, {"CREDENTIALS_DIRECTORY": "DIR"}, "keychain"),
        ({}, {"CREDENTIALS_DIRECTORY": "DIR"}, "credential"),
        ({}, {"CREDENTIALS_DIRECTORY": "/nowhere"}, "file"),
    ],
)
def test_source_is_what_the_settings_name(
    tmp_path: Path, setting: Mapping[str, str], environ: Mapping[str, str], kind: str
) -> None:
    """A setting wins over a credential of systemd, and that over the data directory's own file."""
    (tmp_path / keys.FILE).write_text("")
    there = str(tmp_path)
    settings = Settings(data_dir=there, **{name: value.replace("DIR", there) for name, value in setting.items()})  # type: ignore[arg-type]
    source = source_of(settings, {name: value.replace("DIR", there) for name, value in environ.items()})
    assert source.kind == kind
    assert source.is_own is (kind == "file" and not setting)


def test_two_sources_contradict_each_other() -> None:
    """Which ring would seal must not depend on an order that nobody sees."""
    with pytest.raises(SettingsError, match="CHATD_SEAL_KEYCHAIN"):
        Settings(seal_keychain="chatd", seal_keys="k1:x")


def test_source_shows_no_key() -> None:
    """What is printed of a source holds nothing of the ring."""
    text = KeyRing.generate().text()
    shown = repr(KeySource(kind="text", text=text))
    assert not any(line.partition(":")[2] in shown for line in text.splitlines())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of root's")
def test_credential_of_systemd_is_private_with_its_mask(tmp_path: Path) -> None:
    """A credential has mode 0440, the mask of an access list; the same mode elsewhere, or 0444, is refused."""
    ring = KeyRing.generate()
    path = tmp_path / keys.FILE
    ring.save(path)
    path.chmod(0o440)
    credential = source_of(Settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert credential.load().text() == ring.text()
    with pytest.raises(KeyRingError, match="read by others"):
        KeySource(kind="file", where=str(path)).load()
    path.chmod(0o444)
    with pytest.raises(KeyRingError, match="read by others"):
        credential.load()
    path.chmod(0o440)
    os.chown(path, 12_345, 0)
    with pytest.raises(KeyRingError, match="read by others"):
        credential.load()


def stand_in(folder: Path, script: str) -> str:
    """A program in the place of macOS's ``security``."""
    program = folder / "security"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    return str(program)


@pytest.mark.parametrize("form", ["plain", "hex"])
def test_keychain_gives_the_ring(tmp_path: Path, form: str) -> None:
    """The entry is asked for by its name, and several lines come back as they are or as hexadecimal digits."""
    text = KeyRing.generate().text()
    (tmp_path / "said").write_text(text if form == "plain" else text.encode().hex())
    program = stand_in(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/said')
    assert KeyRing.parse(from_keychain("chatd keys", program)).text() == text
    assert (tmp_path / "asked").read_text() == "find-generic-password -s chatd keys -w\n"


@pytest.mark.parametrize(
    "script", ["echo secret >&2; exit 44", "printf '\\377\\376'", "exec sleep 5"], ids=["none", "bytes", "silent"]
)
def test_keychain_that_gives_no_ring_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """No entry, no text, no answer: an error that holds nothing of what came."""
    monkeypatch.setattr(keys, "_KEYCHAIN_WAIT_S", 0.3)
    with pytest.raises(KeyRingError) as told:
        KeyRing.parse(from_keychain("chatd", stand_in(tmp_path, script)))
    assert "secret" not in str(told.value)


def test_no_keychain_on_this_system_is_told(tmp_path: Path) -> None:
    """Where there is no ``security``, the start says so."""
    with pytest.raises(KeyRingError, match="keychain"):
        from_keychain("chatd", str(tmp_path / "security"))


def test_own_file_is_made_once(tmp_path: Path) -> None:
    """Without a setting the data directory's ring is made at the first start, and found at the second."""
    places = Places(Settings(data_dir=str(tmp_path / "data")))
    first = places.live_keys().sealer.ring
    assert places.key_ring().text() == first.text()


def test_named_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A mistyped name must not begin a new ring that opens nothing of the old one."""
    with pytest.raises(KeyRingError, match="no key file"):
        Places(Settings(data_dir=str(tmp_path), seal_key_file=str(tmp_path / "none"))).live_keys()


# --- rotation without a restart -----------------------------------------------------------------------------


def test_new_key_is_taken_and_the_old_one_opens(tmp_path: Path) -> None:
    """After the file was replaced the new key seals, and what the old one sealed opens as before."""
    ring = KeyRing.generate()
    path = tmp_path / "ring"
    live = LiveKeys(written(path, ring))
    old = live.sealer.seal(b"before", aad=AAD)
    derived = live.sealer.derive("pseudonym")
    assert live.look() is False
    written(path, ring.add("k-new"))
    with capture_logs() as lines:
        assert live.look() is True
    assert [line["event"] for line in lines] == ["keys_renewed"]
    assert live.sealer.ring.current == "k-new"
    assert live.sealer.open(old, aad=AAD) == b"before"
    assert live.sealer.open(live.sealer.seal(b"after", aad=AAD), aad=AAD) == b"after"
    assert live.sealer.derive("pseudonym") == derived


def test_record_of_a_newer_key_opens_at_once(tmp_path: Path) -> None:
    """Another process has taken the new key a moment earlier: its record is opened at once."""
    ring = KeyRing.generate()
    path = tmp_path / "ring"
    live = LiveKeys(written(path, ring))
    newer = ring.add("k-new")
    written(path, newer)
    assert live.sealer.open(Sealer(newer).seal(b"word", aad=AAD), aad=AAD) == b"word"
    assert live.sealer.ring.current == "k-new"


def test_unknown_key_costs_one_look_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a key that is nowhere is refused each time, and the file is not read each time."""
    live = LiveKeys(written(tmp_path / "ring", KeyRing.generate()))
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        return False

    monkeypatch.setattr(live, "look", look)
    now = [1_000.0]
    monkeypatch.setattr("chatd.keys.time.monotonic", lambda: now[0])
    strange = Sealer(KeyRing.generate()).seal(b"word", aad=AAD)
    for step in (0.0, 0.5, 0.4, 0.2):
        now[0] += step
        with pytest.raises(SealError, match="key_unknown"):
            live.sealer.open(strange, aad=AAD)
    assert len(looks) == 2


@pytest.mark.parametrize("what", ["gone", "text", "open", "root"])
def test_ring_that_cannot_be_used_changes_nothing(tmp_path: Path, what: str) -> None:
    """The file is gone, is no ring, can be read by others or has another root: told once, and the old ring stays."""
    ring = KeyRing.generate()
    path = tmp_path / "ring"
    live = LiveKeys(written(path, ring))
    match what:
        case "gone":
            path.unlink()
        case "text":
            path.write_text("k1:no")
        case "open":
            ring.add("k-new").save(path)
            path.chmod(0o644)
        case "root":
            KeyRing.generate().save(path)
    with capture_logs() as lines:
        assert [live.look(), live.look()] == [False, False]
    assert [line["event"] for line in lines] == ["keys_not_renewed"]
    assert live.sealer.ring.text() == ring.text()
    # Put right again, it is taken.
    written(path, ring.add("k-right"))
    assert live.look() is True


def test_removed_key_opens_nothing_more(tmp_path: Path) -> None:
    """The last step of a rotation shreds what the old key had sealed."""
    ring = KeyRing.generate().add("k-new")
    path = tmp_path / "ring"
    live = LiveKeys(written(path, ring))
    old = Sealer(ring.promote(ring.ids[1])).seal(b"word", aad=AAD)
    assert live.sealer.open(old, aad=AAD) == b"word"
    written(path, ring.remove(ring.ids[1]))
    live.look()
    with pytest.raises(SealError, match="key_unknown"):
        live.sealer.open(old, aad=AAD)


async def test_keys_are_looked_at_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of a gateway takes a new ring by itself; that of a text waits and ends by cancellation."""
    monkeypatch.setattr(keys, "_FILE_EVERY_S", 0.01)
    ring = KeyRing.generate()
    path = tmp_path / "ring"
    live = LiveKeys(written(path, ring))
    still = LiveKeys(KeySource(kind="text", text=ring.text()))
    running = [asyncio.create_task(each.run()) for each in (live, still)]
    written(path, ring.add("k-new"))
    async with asyncio.timeout(20):
        while live.sealer.ring.current != "k-new":  # noqa: ASYNC110 - a thread changes it
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in running)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert still.sealer.ring.current == ring.current


# --- no dump of memory --------------------------------------------------------------------------------------


def test_process_is_not_dumped() -> None:
    """After asking, the limit is 0 in the process and in those that it starts, and the kernel does not dump it."""
    script = (
        "import subprocess, sys; from chatd.hardening import *; import chatd.hardening as h; before = "
        "h.is_without_core_dumps(); print(before, h.no_core_dumps(), h.no_core_dumps()); sys.stdout.flush(); "
        "subprocess.run([sys.executable, '-c', 'import resource; print(resource.getrlimit(resource.RLIMIT_CORE))'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["False True True", "(0, 0)"]
