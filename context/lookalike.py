"""Names that may be taken for each other, and names of letters that do not belong together. Pure rules.

Two names look alike if they are the same once accents, case and spacing are gone; if they are the same once each
letter has become the one it looks like (the skeleton of Unicode Technical Standard #39); if they share the family
name and the first letter of the first name; or if, under one first name, the family names differ by one letter. It is
better to ask once too often which of two patients is meant than to open the wrong record.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from context.confusables import PROTOTYPES
from context.text import fold_line

_WORD = re.compile(r"\w+(?:['-]\w+)*")
#: What stands before or after a name and tells nobody apart.
_TITLES: Final = frozenset(("d", "dr", "dra", "sr", "sra", "mr", "mrs", "ms", "dona"))
_SUFFIXES: Final = frozenset(("filho", "filha", "neto", "neta", "sobrinho", "junior", "jr", "senior", "ii", "iii"))
#: Family names that are shorter differ too often by one letter.
_MIN_SLIP_CHARS: Final = 4

#: Scripts whose letters are taken for each other's. Others, beside Latin, are how names are written in two ways.
_TAKEN: Final = frozenset(("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "COPTIC", "CHEROKEE", "LISU"))


def skeleton(text: str) -> str:
    """``text`` with each sign as the one it looks like; two texts of one skeleton cannot be told apart by eye.

    Not for showing. Source: Unicode Technical Standard #39, section 4.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).translate(PROTOTYPES))


def keys_of(name: str) -> frozenset[str]:
    """What ``name`` has in common with each name that may be taken for it: two names look alike if they share a key."""
    plain = fold_line(name)
    # Letters of one alphabet look alike in capitals and not in small ones ("B" and "в"), so all three count.
    keys = {f"n {plain}", *(f"s {fold_line(skeleton(form))}" for form in (name, name.upper(), name.lower()))}
    words = _words(name)
    if len(words) > 1:
        first, family = words[0], words[-1]
        # The family and the initial as they look, too.
        keys |= {f"f {family} {first[0]}", f"f {_look(family)} {_look(first)[0]}"}
        if len(family) >= _MIN_SLIP_CHARS:
            keys |= {f"m {first} {family[:at]}{family[at + 1 :]}" for at in range(len(family))}
            keys.add(f"m {first} {family}")
    return frozenset(keys)


def _look(word: str) -> str:
    return fold_line(skeleton(word)) or word


def _words(name: str) -> list[str]:
    """The words of a name, the first name first and the family name last: "Silva, João" is "joao silva"."""
    last, comma, first = fold_line(name).partition(",")
    words = [word for word in _WORD.findall(f"{first} {last}" if comma else last) if word not in _TITLES]
    while len(words) > 2 and words[-1] in _SUFFIXES:
        words.pop()
    return words


class LookAlikes:
    """Which of a list of names may be taken for another; remembers the keys of the last list."""

    def __init__(self) -> None:
        self._keys: dict[str, frozenset[str]] = {}

    def among(self, names: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
        """From each id to the ids of all others whose names look like its own; ``names`` are pairs of id and name.

        Ids without such others are left out. 5,000 new names take some 0.6 s, known ones 0.1 s.
        """
        known, self._keys = self._keys, {}
        owners: defaultdict[str, set[str]] = defaultdict(set)
        for owner, name in names:
            keys = self._keys.get(name)
            if keys is None:
                keys = self._keys[name] = known.get(name) or keys_of(name)
            for key in keys:
                owners[key].add(owner)
        found: defaultdict[str, set[str]] = defaultdict(set)
        for group in owners.values():
            if len(group) > 1:
                for owner in group:
                    found[owner] |= group
        return {owner: frozenset(group - {owner}) for owner, group in found.items()}


def mixed_scripts(name: str) -> tuple[str, ...]:
    """The scripts of ``name`` where letters of several that look alike stand in it, else nothing.

    "Mаria" with a Cyrillic "а" gives ("Cyrillic", "Latin"). A name wholly in one script gives nothing, and neither
    does one that says itself a second time in a script that nobody takes for Latin.
    """
    scripts = {_script(sign) for sign in name if sign.isalpha()} & _TAKEN
    return tuple(sorted(script.capitalize() for script in scripts)) if len(scripts) > 1 else ()


def _script(letter: str) -> str:
    # Names of letters begin with their script; the standard library has no other table of them.
    return unicodedata.name(letter, "").partition(" ")[0]
