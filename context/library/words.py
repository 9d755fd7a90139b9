"""How the protocol library reads words: spelling, synonyms, typing errors, negation and history.

A text becomes a tuple of ``Token``s, each with the canonical word and what was said about it. The tables
(synonyms, negation cues, words that must not be corrected) are data: ``data/terms.json``. Nothing here awaits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from rapidfuzz.distance import OSA

from context.memo import remembers
from context.text import without_accents

#: Longer texts are read up to here. A question has at most 4000 characters on the wire; a report may be longer.
MAX_CHARS = 8000
#: Only words this long are corrected: "PE" and "AF" are one letter away from too much.
FUZZY_MIN_LETTERS = 5
#: From this length two errors are forgiven instead of one.
FUZZY_LONG_LETTERS = 10
#: Words after a negation cue that it reaches, unless the clause ends before.
NEGATION_REACH = 6
#: A bare "not" reaches less far: "not septic" negates, "not give adrenaline in anaphylaxis" does not.
SHORT_REACH = 3
#: In a list after a negation ("no fever, cough or chest pain") an item has at most this many words.
LIST_ITEM_WORDS = 3
#: Words before an after-cue that it reaches back over ("chest pain: denied").
BACKWARD_REACH = 4

_WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_][^\W_]*")
_BREAK = re.compile(r"[.;:!?()\[\]\n\r]")
# After a term a colon or dash may introduce its negation: "chest pain: no".
_HARD_BREAK = re.compile(r"[.;!?()\[\]\n\r,]")
#: Prefixes that turn a word into its opposite; a typing error never crosses from one to another.
_OPPOSITES = ("hyper", "hiper", "hypo", "hipo", "tachy", "taqui", "brady", "bradi", "normo")


class Cues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Phrases that negate or date what stands beside them.

    before: reach forward ``NEGATION_REACH`` words. short: reach forward ``SHORT_REACH`` words.
    after: reach back ``BACKWARD_REACH`` words. pseudo: look like a negation and are none ("no improvement").
    stop: words that end a reach. join: words that carry it over a comma ("or").
    history_before, history_after: the term belongs to the past ("history of", "in yyyy", "nn years ago").
    portuguese, english: small words that tell the language of a text, for the English "no" against the
        Portuguese "no" (in the).
    """

    before: tuple[str, ...]
    short: tuple[str, ...]
    after: tuple[str, ...]
    pseudo: tuple[str, ...]
    stop: tuple[str, ...]
    join: tuple[str, ...]
    history_before: tuple[str, ...]
    history_after: tuple[str, ...]
    portuguese: tuple[str, ...]
    english: tuple[str, ...]


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table behind the reading: ``data/terms.json``.

    synonyms: groups of words or phrases that mean the same; the first of each is the canonical one.
    distinct: correctly spelled words that a correction must leave alone, beside all words of the protocols.
    skip: small words that are left out on both sides.
    general: phrases of a question about the whole patient ("what should I do next").
    neutral: phrases that take their words out of the search ("hit by a car" is no HIT).
    """

    synonyms: tuple[tuple[str, ...], ...]
    distinct: tuple[str, ...]
    skip: tuple[str, ...]
    general: tuple[str, ...]
    neutral: tuple[str, ...]
    cues: Cues


class Token(msgspec.Struct, frozen=True):
    """One canonical word of a text.

    capitals: it was written in capitals in a text that is not all capitals ("HIT", not "hit").
    negated, past: what the words around it say.
    """

    word: str
    capitals: bool = False
    negated: bool = False
    past: bool = False


def plain(text: str) -> str:
    """``text`` without accents and compatibility forms, case kept; at most ``MAX_CHARS`` characters are read."""
    return without_accents(text[:MAX_CHARS])


def words(text: str) -> tuple[str, ...]:
    """The casefolded words and numbers of ``text``; a decimal comma becomes a point."""
    return tuple(_fold(m.group()) for m in _WORD.finditer(plain(text)))


def _fold(raw: str) -> str:
    return raw.casefold().replace(",", ".")


class _Raw(msgspec.Struct):
    word: str
    gap: str
    capitals: bool
    negated: bool = False
    past: bool = False


class PhraseSet:
    """Phrases by their words: answers which of them starts at a place, longest first."""

    def __init__(self, phrases: Iterable[tuple[str, ...]]) -> None:
        self._phrases = frozenset(p for p in phrases if p)
        self._longest = max((len(p) for p in self._phrases), default=0)

    def at(self, row: list[str] | tuple[str, ...], start: int) -> int:
        """Length in words of the longest phrase that starts at ``start``; 0 if none does."""
        for length in range(min(self._longest, len(row) - start), 0, -1):
            if tuple(row[start : start + length]) in self._phrases:
                return length
        return 0


class Reader:
    """Reads texts into tokens with one table of terms and one vocabulary.

    ``vocabulary``: every phrase the library searches for; their words are what typing errors are corrected to.
    """

    def __init__(self, terms: Terms, vocabulary: Iterable[str] = ()) -> None:
        cues = terms.cues
        self._skip = frozenset(w for t in terms.skip for w in words(t))
        self._before = PhraseSet(words(c) for c in cues.before)
        self._short = PhraseSet(words(c) for c in cues.short)
        self._after = PhraseSet(words(c) for c in cues.after)
        self._pseudo = PhraseSet(words(c) for c in cues.pseudo)
        self._stop = frozenset(w for c in cues.stop for w in words(c))
        self._join = frozenset(w for c in cues.join for w in words(c))
        self._history_before = PhraseSet(words(c) for c in cues.history_before)
        self._history_after = PhraseSet(words(c) for c in cues.history_after)
        self._portuguese = frozenset(w for c in cues.portuguese for w in words(c))
        self._english = frozenset(w for c in cues.english for w in words(c))
        self._synonyms: dict[tuple[str, ...], tuple[str, ...]] = {}
        for group in terms.synonyms:
            canonical = self._kept(words(group[0]))
            # The canonical phrase stands for itself, so that no word inside it is replaced.
            for variant in group:
                key = self._kept(words(variant))
                if not key or self._synonyms.setdefault(key, canonical) != canonical:
                    raise ValueError(f"{variant!r} is empty or stands for two different terms")
        self._variants = PhraseSet(self._synonyms)
        known = {w for phrase in vocabulary for w in words(phrase)}
        known.update(w for group in terms.synonyms for variant in group for w in words(variant))
        known.update(w for phrase in terms.general for w in words(phrase))
        targets = {w for w in known if len(w) >= FUZZY_MIN_LETTERS and w.isalpha()}
        distinct = {w for t in terms.distinct for w in words(t)}
        distinct.update(w for field in cues.__struct_fields__ for c in getattr(cues, field) for w in words(c))
        self._known = frozenset(known | distinct | self._portuguese | self._english | self._skip)
        self._searched = frozenset(targets)
        self._targets: dict[str, list[str]] = {}
        # Distinct words are targets too: "hypokalemai" must find hypokalaemia, not its opposite.
        for word in sorted(targets | {w for w in distinct if len(w) >= FUZZY_MIN_LETTERS}):
            self._targets.setdefault(word[0], []).append(word)
        # A ward's typing errors repeat; the bound keeps strangers' words from growing the memory.
        self._corrected = remembers(4096)(self._correct)

    def phrase(self, text: str) -> tuple[str, ...]:
        """The canonical words of a term of the data: no correction, no negation."""
        return tuple(t.word for t in self._canonical([_Raw(w, "", False) for w in words(text)]))

    def read(self, text: str, *, correct: bool = False) -> tuple[Token, ...]:
        """The canonical tokens of ``text``; with ``correct``, typing errors in words of 5 letters or more are mended.

        Bounded by ``MAX_CHARS``. Never raises, whatever the text. Same text, same tokens.
        """
        row = self._raws(text, correct)
        self._negate(row)
        self._date(row)
        return self._canonical(row)

    def _raws(self, text: str, correct: bool) -> list[_Raw]:
        source = plain(text)
        # In a text all in capitals they say nothing.
        shouted = source.isupper() and len(source.split()) > 2
        row: list[_Raw] = []
        end = 0
        for found in _WORD.finditer(source):
            raw = found.group()
            word = _fold(raw)
            if correct:
                word = self._corrected(word)
            row.append(_Raw(word, source[end : found.start()], raw.isupper() and not shouted))
            end = found.end()
        return row

    def _correct(self, word: str) -> str:
        if len(word) < FUZZY_MIN_LETTERS or not word.isalpha() or word in self._known:
            return word
        allowed = 2 if len(word) >= FUZZY_LONG_LETTERS else 1
        best: list[str] = []
        for target in self._targets.get(word[0], ()):
            if abs(len(target) - len(word)) > allowed:
                continue
            distance = OSA.distance(word, target, score_cutoff=allowed)
            if distance < allowed or (distance == allowed and not best):
                if distance < allowed:
                    best.clear()
                    allowed = distance
                best.append(target)
            elif distance == allowed:
                best.append(target)
        sides = {_side(t) for t in best}
        if not best or len(sides) > 1 or (_side(word) and _side(word) not in sides):
            return word
        # Between a term of the library and an ordinary word the term wins: a missed page harms more.
        return next((t for t in best if t in self._searched), best[0])

    def _negate(self, row: list[_Raw]) -> None:
        texts = [r.word for r in row]
        english_no = self._reads_english(texts)
        i = 0
        while i < len(row):
            if length := self._pseudo.at(texts, i):
                i += length
                continue
            if texts[i] == "no" and not english_no:
                i += 1
                continue
            if self._after.at(texts, i):
                self._reach_back(row, i, "negated")
            if length := self._before.at(texts, i):
                self._reach(row, i + length, NEGATION_REACH)
                i += length
                continue
            if length := self._short.at(texts, i):
                self._reach(row, i + length, SHORT_REACH)
            i += 1

    def _reach(self, row: list[_Raw], start: int, most: int) -> None:
        for i in range(start, min(start + most, len(row))):
            if i > start and row[i].word in self._stop:
                return
            gap = row[i].gap
            if i > start and (_BREAK.search(gap) or ("," in gap and not self._list_goes_on(row, i))):
                return
            row[i].negated = True

    def _list_goes_on(self, row: list[_Raw], start: int) -> bool:
        """Whether the item after a comma still belongs to a negated list: short items, then "or" before the end."""
        item = 0
        for i in range(start, len(row)):
            if i > start:
                if _BREAK.search(row[i].gap) or row[i].word in self._stop:
                    return False
                if "," in row[i].gap:
                    item = 0
            if row[i].word in self._join:
                return True
            item += 1
            if item > LIST_ITEM_WORDS:
                return False
        return False

    def _reach_back(self, row: list[_Raw], cue: int, mark: str) -> None:
        for i in range(cue - 1, max(cue - 1 - BACKWARD_REACH, -1), -1):
            if _HARD_BREAK.search(row[i + 1].gap) or row[i].word in self._stop:
                return
            setattr(row[i], mark, True)

    def _date(self, row: list[_Raw]) -> None:
        texts = [_dated(r.word) for r in row]
        for i in range(len(row)):
            if length := self._history_before.at(texts, i):
                for j in range(i + length, min(i + length + SHORT_REACH, len(row))):
                    if j > i + length and (_HARD_BREAK.search(row[j].gap) or row[j].word in self._stop):
                        break
                    row[j].past = True
            if self._history_after.at(texts, i):
                self._reach_back(row, i, "past")

    def _reads_english(self, texts: list[str]) -> bool:
        portuguese = sum(w in self._portuguese for w in texts)
        return portuguese == 0 or sum(w in self._english for w in texts) > portuguese

    def _kept(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(w for w in row if w not in self._skip)

    def _canonical(self, row: list[_Raw]) -> tuple[Token, ...]:
        kept = [r for r in row if r.word not in self._skip]
        texts = [r.word for r in kept]
        tokens: list[Token] = []
        i = 0
        while i < len(kept):
            length = self._variants.at(texts, i)
            span = kept[i : i + max(length, 1)]
            out = self._synonyms[tuple(texts[i : i + length])] if length else (texts[i],)
            flags = (
                all(r.capitals for r in span),
                span[0].negated,
                span[0].past,
            )
            tokens += [Token(w, *flags) for w in out]
            i += max(length, 1)
        return tuple(tokens)


def _dated(word: str) -> str:
    """A year as "yyyy" and a small number as "nn", the way the cues write them."""
    if word.isdigit() and word.isascii():
        if len(word) == 4 and word[:2] in ("19", "20"):
            return "yyyy"
        if len(word) <= 2:
            return "nn"
    return word


def _side(word: str) -> str:
    """Which of two opposites a word begins with: "" if neither; English and Portuguese spellings are one side."""
    for prefix in _OPPOSITES:
        if word.startswith(prefix):
            return prefix.replace("i", "y").replace("taquy", "tachy")
    return ""
