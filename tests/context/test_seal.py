"""Sealing: what was sealed opens in its own place, under any key of the ring, and nowhere else."""

from __future__ import annotations

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.seal import KeyRing, KeyRingError, Sealer, SealError

if TYPE_CHECKING:
    from pathlib import Path

RING = KeyRing({"a": b"1" * 32, "b": b"2" * 32}, b"r" * 32)
SEALER = Sealer(RING)


@given(st.binary(max_size=2000), st.binary(max_size=100))
def test_open_gives_back_what_was_sealed(plaintext: bytes, aad: bytes) -> None:
    """Any bytes sealed for a place open in that place, 30 bytes and the key id's length longer."""
    sealed = SEALER.seal(plaintext, aad=aad)
    assert len(sealed) == len(plaintext) + 31
    assert SEALER.open(sealed, aad=aad) == plaintext


@given(st.binary(min_size=1, max_size=64), st.data())
def test_open_refuses_any_changed_bit(plaintext: bytes, data: st.DataObject) -> None:
    """A sealed record with any one bit changed does not open, the header included."""
    sealed = bytearray(SEALER.seal(plaintext, aad=b"here"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(SealError):
        SEALER.open(bytes(sealed), aad=b"here")


@given(st.data())
def test_open_refuses_any_cut(data: st.DataObject) -> None:
    """A sealed record that lost its end, or its beginning, does not open."""
    sealed = SEALER.seal(b"troponin 45", aad=b"here")
    length = data.draw(st.integers(0, len(sealed) - 1))
    for cut in (sealed[:length], sealed[len(sealed) - length :]):
        with pytest.raises(SealError):
            SEALER.open(cut, aad=b"here")


@given(st.binary(max_size=200))
def test_open_of_noise_is_a_seal_error(noise: bytes) -> None:
    """Bytes that were never sealed raise SealError and nothing else."""
    with pytest.raises(SealError):
        SEALER.open(noise, aad=b"here")


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_open_refuses_another_place(here: bytes, there: bytes) -> None:
    """A record moved to another place does not open there."""
    sealed = SEALER.seal(b"x", aad=here)
    if here == there:
        assert SEALER.open(sealed, aad=there) == b"x"
        return
    with pytest.raises(SealError) as error:
        SEALER.open(sealed, aad=there)
    assert error.value.reason == "tampered"


def test_open_does_not_confuse_header_and_place() -> None:
    """Bytes shifted between key id and place do not open: the header's length is authenticated."""
    ring = KeyRing({"ab": b"1" * 32, "a": b"1" * 32})
    sealed = Sealer(ring).seal(b"x", aad=b"c")
    moved = bytes((1, 1)) + b"a" + sealed[4:]
    with pytest.raises(SealError):
        Sealer(ring).open(moved, aad=b"bc")


def test_seal_never_repeats_a_nonce() -> None:
    """The same plaintext sealed a thousand times gives a thousand nonces."""
    assert len({SEALER.seal(b"same", aad=b"")[3:15] for _ in range(1000)}) == 1000


def test_seal_error_says_which_key_is_unknown() -> None:
    """A record of a key that is not in the ring says so by the key's id, not as tampering."""
    sealed = SEALER.seal(b"secret text", aad=b"here")
    with pytest.raises(SealError) as error:
        Sealer(KeyRing({"z": b"3" * 32})).open(sealed, aad=b"here")
    assert (error.value.reason, error.value.key_id) == ("key_unknown", "a")


def test_seal_error_holds_no_content() -> None:
    """Neither the error's text nor its fields hold what was sealed."""
    sealed = SEALER.seal(b"Joao Silva", aad=b"patient/7823")
    with pytest.raises(SealError) as error:
        SEALER.open(sealed[:-1], aad=b"patient/7823")
    assert "Silva" not in repr(vars(error.value)) + str(error.value)
    assert "7823" not in repr(vars(error.value)) + str(error.value)
    assert error.value.__cause__ is None


def test_rotation_old_records_open_and_new_ones_use_the_new_key() -> None:
    """After ``add`` the new key seals and the old one still opens; after ``remove`` what it sealed is gone."""
    old = SEALER.seal(b"old", aad=b"x")
    rotated = Sealer(RING.add("c"))
    assert rotated.open(old, aad=b"x") == b"old"
    new = rotated.seal(b"new", aad=b"x")
    with pytest.raises(SealError):
        SEALER.open(new, aad=b"x")
    assert Sealer(rotated.ring.remove("a")).open(new, aad=b"x") == b"new"
    with pytest.raises(SealError):
        Sealer(rotated.ring.remove("a")).open(old, aad=b"x")


def test_rotation_in_two_steps_for_several_gateways() -> None:
    """A key added as not current opens but does not seal until it is promoted."""
    waiting = RING.add("c", current=False)
    assert waiting.current == "a"
    promoted = waiting.promote("c")
    assert promoted.current == "c"
    assert Sealer(waiting).open(Sealer(promoted).seal(b"x", aad=b""), aad=b"") == b"x"


@pytest.mark.parametrize("ring", [RING, KeyRing.parse("only:" + base64.b64encode(b"k" * 32).decode())])
def test_derive_survives_rotation(ring: KeyRing) -> None:
    """Derived keys stay the same while keys are added, promoted and the first ones removed."""
    before = Sealer(ring).derive("names")
    later = ring.add("n1").add("n2", current=False).promote("n2")
    for key_id in ring.ids:
        later = later.remove(key_id)
    assert Sealer(KeyRing.parse(later.text())).derive("names") == before


def test_derive_differs_by_purpose_and_ring() -> None:
    """Two purposes, and two rings, give different keys of 32 bytes, none of them a key of the ring."""
    keys = {SEALER.derive("a"), SEALER.derive("b"), Sealer(KeyRing.generate()).derive("a"), b"1" * 32, b"r" * 32}
    assert len(keys) == 5
    assert {len(key) for key in keys} == {32}


def test_ring_text_is_read_back() -> None:
    """Text form: current first, root marked, comments and empty lines ignored."""
    again = KeyRing.parse("# keys of the ward\n\n" + RING.text())
    assert (again.ids, again.current, again.root) == (("a", "b"), "a", b"r" * 32)
    assert again.text() == RING.text()


def test_ring_repr_holds_no_key() -> None:
    """``repr`` of a ring shows ids only."""
    assert repr(RING) == "KeyRing(a, b)"


GOOD = base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "a",
        "a:",
        ":" + GOOD,
        f"a:{GOOD[:-4]}",
        f"a:{GOOD[:-1]}",
        "a:not base64!",
        "a:" + base64.b64encode(b"k" * 16).decode(),
        f"a:{GOOD}\na:{GOOD}",
        f"a b:{GOOD}",
        f"é:{GOOD}",
        f"{'x' * 33}:{GOOD}",
        f"root:{GOOD}",
        f"a:{GOOD}\nroot:AAAA",
        "".join(f"k{n}:{GOOD}\n" for n in range(65)),
    ],
)
def test_ring_parse_refuses(text: str) -> None:
    """Text that is no ring raises KeyRingError without showing a key."""
    with pytest.raises(KeyRingError) as error:
        KeyRing.parse(text)
    assert GOOD[:8] not in str(error.value)


def test_ring_refuses_a_second_key_of_the_same_id_and_unknown_ids() -> None:
    """``add`` of a known id, and ``promote`` or ``remove`` of an unknown one or the last one, are refused."""
    for wrong in (
        lambda: RING.add("a"),
        lambda: RING.add("root"),
        lambda: RING.promote("z"),
        lambda: RING.remove("z"),
        lambda: RING.remove("a").remove("b"),
    ):
        with pytest.raises(KeyRingError):
            wrong()


def test_load_creates_a_private_file_once(tmp_path: Path) -> None:
    """``load(create=True)`` makes a file of mode 0600, and reads the same ring ever after."""
    path = tmp_path / "keys"
    ring = KeyRing.load(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing.load(path).text() == KeyRing.load(path, create=True).text() == ring.text()
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


def test_load_by_many_at_once_gives_one_ring(tmp_path: Path) -> None:
    """Processes that create the file at the same time all hold the same keys."""
    with ThreadPoolExecutor(16) as pool:
        rings = list(pool.map(lambda _: KeyRing.load(tmp_path / "keys", create=True).text(), range(64)))
    assert len(set(rings)) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_load_refuses_a_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    """A key file with any right for group or others is refused."""
    path = tmp_path / "keys"
    KeyRing.generate().save(path)
    path.chmod(mode)
    with pytest.raises(KeyRingError):
        KeyRing.load(path)


def test_load_refuses_what_is_no_key_file(tmp_path: Path) -> None:
    """No file, an endless one, and bytes that are no text raise KeyRingError."""
    path = tmp_path / "keys"
    with pytest.raises(KeyRingError):
        KeyRing.load(path)
    for content in (b"#" * 10_000, b"\xff\xfe", b""):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyRingError):
            KeyRing.load(path)


def test_save_replaces_the_file_whole(tmp_path: Path) -> None:
    """``save`` writes the rotated ring with mode 0600 and leaves nothing beside it."""
    path = tmp_path / "keys"
    ring = KeyRing.load(path, create=True).add("next")
    ring.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing.load(path).current == "next"
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]
