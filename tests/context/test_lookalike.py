"""Names that may be taken for each other, and names in letters of several scripts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.confusables import PROTOTYPES
from context.lookalike import LookAlikes, keys_of, mixed_scripts, skeleton


def alike(one: str, other: str) -> bool:
    return bool(keys_of(one) & keys_of(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("João Silva", "JOAO  SILVA"),
        ("Silva, João", "João Silva"),
        ("Dra. Ana Costa", "Ana Costa"),
        ("Rui Costa", "Rui Costa Filho"),
        # Letters of other scripts: Cyrillic "М", "а"; Greek "Β", "ο"; all of it Cyrillic; Armenian "օ".
        ("Maria Silva", "Мaria Silvа"),
        ("Bento Gomes", "Βentο Gomes"),
        ("Capa Coco", "Сара Сосо"),
        ("Rosa Pinto", "Rօsa Pinto"),
        ("ANA BARROS", "ANA ВARROS"),
        # Within one script: a digit, "rn" for "m", capital "I" for "l".
        ("Olga Nunes", "0lga Nunes"),
        ("Mamie Reis", "Marnie Reis"),
        ("Alma Leal", "AIma LeaI"),
        # Another first name with the same initial; one letter more, less, another or exchanged.
        ("José Silva", "João Silva"),
        ("João M. Silva", "Joana da Silva"),
        ("Maria Reis", "Maria Reys"),
        ("Maria Fernandes", "Maria Fernandez"),
        ("Rui Antunes", "Rui Antune"),
    ],
)
def test_names_that_look_alike(one: str, other: str) -> None:
    """They share a key, whichever is asked first, and however the letters are composed."""
    assert one != other
    assert alike(one, other)
    assert alike(unicodedata.normalize("NFD", other), one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ana Costa", "Rita Costa"),
        ("Ana Costa", "Ana Pinto"),
        ("Ana Reis", "Ana Dias"),
        ("João Silva", "Silva João"),
        ("Мария Иванова", "Maria Ivanova"),
        ("Ana", "Ana Costa"),
    ],
)
def test_names_that_do_not(one: str, other: str) -> None:
    """Another family name, or another initial, tells two people apart."""
    assert not alike(one, other)


@pytest.mark.parametrize(
    ("name", "scripts"),
    [
        ("Mаria Silva", ("Cyrillic", "Latin")),
        ("Βento", ("Greek", "Latin")),
        ("Maria Иванова", ("Cyrillic", "Latin")),
        ("João Gonçalves d'Ávila-Müller", ()),
        ("Мария Иванова", ()),
        ("Li Wei 李伟", ()),
        ("(no name)", ()),
        ("", ()),
    ],
)
def test_mixed_scripts(name: str, scripts: tuple[str, ...]) -> None:
    """Only letters that are taken for each other's count as mixed."""
    assert mixed_scripts(name) == scripts


def test_table_has_what_the_standard_names() -> None:
    """Pairs that every report of such tricks has; nothing maps to itself, and mapping twice changes nothing."""
    pairs = {"а": "a", "е": "e", "о": "o", "р": "p", "с": "c", "у": "y", "х": "x", "Α": "A", "Ο": "O", "m": "rn"}
    assert {sign: PROTOTYPES[ord(sign)] for sign in pairs} == pairs
    assert len(PROTOTYPES) > 500
    for sign, prototype in PROTOTYPES.items():
        assert chr(sign) != prototype
        assert skeleton(skeleton(chr(sign))) == skeleton(prototype) == skeleton(chr(sign))


@given(st.text(max_size=40))
def test_any_text_has_a_skeleton_and_keys(text: str) -> None:
    """Whatever a source calls a name, it looks like itself; a skeleton has no other skeleton."""
    assert skeleton(skeleton(text)) == skeleton(text)
    assert keys_of(text) == keys_of(text) != frozenset()
    mixed_scripts(text)


@given(st.lists(st.sampled_from(["João Silva", "José Silva", "Jоão Silva", "Ana Dias", "Rui Costa", ""]), max_size=8))
def test_look_alikes_are_each_others(names: list[str]) -> None:
    """Nobody is their own, each is the other's, and a second look at the same list says the same."""
    listed = [(str(number), name) for number, name in enumerate(names)]
    look_alikes = LookAlikes()
    found = look_alikes.among(listed)
    assert look_alikes.among(listed) == found
    assert all(one in found[other] for one, others in found.items() for other in others)
    expected = {
        one: frozenset(other for other, theirs in listed if other != one and alike(name, theirs))
        for one, name in listed
    }
    assert found == {one: others for one, others in expected.items() if others}
