"""What the model writes: six short sections of plain text, the grammar that holds it to them, and their reader.

A small model asked for JSON degenerates; asked for labelled lines it does not, and lines can be shown as they come.
The reader is total: any string gives a valid structure, also from a server that knows no grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Section = Literal["headline", "findings", "interpretation", "recommendations", "missing", "actions"]

#: In the order in which they are written.
SECTIONS: Final[tuple[Section, ...]] = (
    "headline",
    "findings",
    "interpretation",
    "recommendations",
    "missing",
    "actions",
)
#: How many lines a section holds at most.
MAX_LINES: Final[dict[Section, int]] = {"findings": 6, "interpretation": 4, "recommendations": 6, "missing": 4}
#: How long a line is at most, in characters.
MAX_CHARS: Final[dict[Section, int]] = {"headline": 140, **dict.fromkeys(MAX_LINES, 240)}
MAX_ACTIONS: Final = 5

#: The labels as they are written, read and shown to the model.
LABELS: Final[dict[Section, str]] = {section: f"{section.capitalize()}:" for section in SECTIONS}
#: What the prompt says about the form of an answer.
FORMAT: Final = f"""\
Write six sections, in this order and with these labels. One statement per line, each line after "- ".
{LABELS["headline"]} one line of at most {MAX_CHARS["headline"]} characters
{LABELS["findings"]}
- up to {MAX_LINES["findings"]} lines
{LABELS["interpretation"]}
- up to {MAX_LINES["interpretation"]} lines
{LABELS["recommendations"]}
- up to {MAX_LINES["recommendations"]} lines
{LABELS["missing"]}
- up to {MAX_LINES["missing"]} lines
{LABELS["actions"]} up to {MAX_ACTIONS} ids of the catalogue, the most useful first, separated by ", ", or none
A line has at most {MAX_CHARS["findings"]} characters. A section with nothing to say has the single line "- none".
"""

# Unseen or misleading: controls, soft hyphen, zero-width and direction marks (a reversed "01 mg" is a dose error),
# line and paragraph separators, surrogates, private use, tags, no characters. As ranges for both kinds of regex.
_UNSEEN: Final = (
    *((0x00, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F), (0x2028, 0x202E)),
    *((0x2060, 0x206F), (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFDD0, 0xFDEF), (0xFEFF, 0xFEFF), (0xFFF0, 0xFFFF)),
    (0xE0000, 0x10FFFF),
)
_SPACES: Final = (
    *((0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F)),
    (0x3000, 0x3000),
)
_ACTION_ID: Final = re.compile(r"[A-Za-z0-9_.:-]+")


class Sections(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as the model wrote it, within the bounds above; nothing in it has been checked against the facts.

    Lines are single, without unseen characters and without spaces around them; one that was too long ends with "…".
    ``actions``: catalogue ids, each once, as ranked. ``is_complete``: every label came, with something behind it,
    and the last line is whole.
    """

    headline: str = ""
    findings: tuple[str, ...] = ()
    interpretation: tuple[str, ...] = ()
    recommendations: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    is_complete: bool = False


# --- writing ---


def grammar(actions: Iterable[str]) -> str:
    """The sections as a grammar in llguidance's dialect of Lark, with these catalogue ids and no others.

    Equal ids in equal order give the equal text, so compiled grammars can be kept by it. A text that the grammar
    accepts ends with a line end, and ``parse`` finds it complete.

    Raises:
        ValueError: an id has other characters than letters, digits and ``_.:-``.
    """
    ids = tuple(dict.fromkeys(actions))
    if bad := [each for each in ids if not _ACTION_ID.fullmatch(each)]:
        raise ValueError(f"{len(bad)} action ids have characters that an id must not have")
    rules = [
        "start: " + " ".join(SECTIONS),
        f'headline: "{LABELS["headline"]} " HEADLINE',
        *(f'{section}: "{LABELS[section]}\\n" (NONE | LINE{{1,{lines}}})' for section, lines in MAX_LINES.items()),
        f'actions: "{LABELS["actions"]} " ({"ids | " if ids else ""}"none") "\\n"',
        f"HEADLINE: {_line_regex('', MAX_CHARS['headline'])}",
        f"LINE: {_line_regex('- ', MAX_CHARS['findings'])}",
        'NONE: "- none\\n"',
    ]
    if ids:
        rules.append(f'ids: ID (", " ID){{0,{MAX_ACTIONS - 1}}}')
        rules.append("ID: " + " | ".join(json.dumps(each) for each in ids))
    return "\n".join(rules) + "\n"


def _line_regex(before: str, chars: int) -> str:
    """A line whose first character is to be seen, so that no line is blank.

    Behind the first character only what llguidance's own slices of a vocabulary exclude is excluded: at 262,144 tokens
    a mask then takes 0.2 ms instead of 5. The reader makes spaces of the other unseen characters.
    """
    unseen_or_space = "".join(
        f"\\x{{{first:X}}}-\\x{{{last:X}}}"
        for first, last in (*_UNSEEN, *_SPACES)
        if first != 0xD800  # surrogates are no characters to llguidance
    )
    return rf"/{before}[^{unseen_or_space}][^\x00-\x1F\x7F]{{0,{chars - 1}}}\n/"


def render(sections: Sections) -> str:
    """The text that reads as ``sections``; complete unless there is no headline."""
    lines = [f"{LABELS['headline']} {sections.headline}"]
    for section in MAX_LINES:
        lines.append(LABELS[section])
        lines += [f"- {line}" for line in getattr(sections, section)] or ["- none"]
    lines.append(f"{LABELS['actions']} {', '.join(sections.actions) or 'none'}")
    return "\n".join(lines) + "\n"


# --- reading ---

# Labels as they are read; Portuguese ones come from models that run without the grammar.
_LABEL_OF: Final[dict[str, Section]] = {section: section for section in SECTIONS} | {
    "título": "headline",
    "titulo": "headline",
    "achados": "findings",
    "interpretação": "interpretation",
    "interpretacao": "interpretation",
    "recomendações": "recommendations",
    "recomendacoes": "recommendations",
    "em falta": "missing",
    "ações": "actions",
    "acoes": "actions",
}
_NONE: Final = frozenset(f"{word}{end}" for word in ("none", "nenhum", "nenhuma", "nada") for end in ("", "."))
# "\r\n" ends a line and then an empty one, which counts for nothing. Other separators are spaces: the grammar bars
# "\n" from a line and not them, so they must not be able to end one and begin a label.
_LINE_END: Final = re.compile("[\n\r]")
_BLANKS: Final = re.compile(f"[\\s{''.join(f'{chr(a)}-{chr(b)}' for a, b in _UNSEEN)}]+")
_BETWEEN_IDS: Final = re.compile(r"[^A-Za-z0-9_.:-]+")
_BEFORE: Final = "#*_ "
_LABEL: Final = re.compile(r"([#*_ ]{0,6})([^\W\d_]+(?: [^\W\d_]+)?)[*_ ]{0,3}(:|$)")
_BULLET: Final = re.compile(r"[-*•–] ")
_BULLETS: Final = ("-", "*", "•", "–")
# A line is kept to this while it is read; what is longer is cut shorter still.
_RAW_CHARS: Final = 1000
# So far before its bound a line may be cut, at a space: half a number is another number.
_CUT_CHARS: Final = 40
_ELLIPSIS: Final = " …"


def parse(text: str, actions: Iterable[str], *, has_stopped: bool = False) -> Sections:
    """Read what a model wrote; total, and ``parse(render(x), ...)`` gives a complete ``x`` back.

    Labels may be missing, come twice, in another order, in Portuguese, in any case or with Markdown around them.
    Lines without a label before them, and further lines of a headline, are findings. What is too much is left out.

    Args:
        actions: the ids that may stand in ``actions``; others are left out.
        has_stopped: the model ended the text by itself, so that a last line without a line end is whole. Otherwise
            such a line is left out, because half a sentence or half a number may mean something else; of the actions'
            line all is taken but a last id that could be the beginning of a longer one.
    """
    known = tuple(actions)
    *lines, rest = _LINE_END.split(text)
    page = _Page()
    for line in lines:
        page.end_line(line[:_RAW_CHARS])
    is_whole, ids = True, page.ids
    if has_stopped:
        page.end_line(rest[:_RAW_CHARS])
    elif rest.strip():
        last = page.read(rest[:_RAW_CHARS], is_ended=True)
        is_whole = last.target == "actions"
        if is_whole:
            page.end_line(rest[:_RAW_CHARS])
            if ids and (ids[-1] not in known or any(each.startswith(ids[-1]) and each != ids[-1] for each in known)):
                is_whole = False
                ids.pop()
    return Sections(
        headline=page.headline,
        findings=tuple(page.lines["findings"]),
        interpretation=tuple(page.lines["interpretation"]),
        recommendations=tuple(page.lines["recommendations"]),
        missing=tuple(page.lines["missing"]),
        actions=tuple(dict.fromkeys(each for each in ids if each in known))[:MAX_ACTIONS],
        is_complete=is_whole and page.filled.issuperset(SECTIONS) and (page.is_none or any(i in known for i in ids)),
    )


class SectionReader:
    """Reads one text while it is written, piece by piece, for showing.

    The texts given for one section, joined, are its lines with a line end between each two, exactly as ``parse`` reads
    them; only a last line that has not ended is here and not there. A label is never given, nor the beginning of
    one, nor ``actions``, whose ids do not matter here for that reason. Held back are the beginning of a line until it
    is clear what it is, a space until something follows, and near the bound of a line its last word.
    """

    def __init__(self, actions: Iterable[str] = ()) -> None:
        del actions
        self._page = _Page()
        self._line = ""
        self._given_chars = 0

    def feed(self, text: str) -> list[tuple[Section, str]]:
        """What can be shown now, in order; neighbours of one section are joined."""
        shown: list[tuple[Section, str]] = []
        *ended, rest = _LINE_END.split(text)
        for line in ended:
            self._show(line, shown, is_ended=True)
        self._show(rest, shown, is_ended=False)
        return shown

    def _show(self, text: str, shown: list[tuple[Section, str]], *, is_ended: bool) -> None:
        self._line += text[: _RAW_CHARS - len(self._line)]
        page = self._page
        read = page.read(self._line, is_ended=is_ended)
        if read.target is not None and read.target != "actions" and page.has_room(read.target):
            more = read.text[self._given_chars :]
            if more and not self._given_chars and page.lines.get(read.target):
                more = "\n" + more
            if more:
                if shown and shown[-1][0] == read.target:
                    more = shown.pop()[1] + more
                shown.append((read.target, more))
            self._given_chars = len(read.text)
        if is_ended:
            page.end_line(self._line)
            self._line = ""
            self._given_chars = 0


class _Read(msgspec.Struct, frozen=True):
    """A line, or its beginning. ``label``: the section that it opens. ``target``: where its text goes; None: nothing
    to show, or not yet clear. ``text``: what of it is certain."""

    label: Section | None = None
    target: Section | None = None
    text: str = ""
    is_none: bool = False


class _Page:
    """The sections as far as they have been read."""

    def __init__(self) -> None:
        self.headline = ""
        self.lines: dict[Section, list[str]] = {section: [] for section in MAX_LINES}
        self.ids: list[str] = []
        #: Sections whose label came and that then got something, "none" too.
        self.filled: set[Section] = set()
        #: Whether "none" stands in the actions.
        self.is_none = False
        self._labelled: set[Section] = set()
        self._section: Section = "findings"

    def has_room(self, section: Section) -> bool:
        if section == "headline":
            return not self.headline
        return section == "actions" or len(self.lines[section]) < MAX_LINES[section]

    def end_line(self, line: str) -> None:
        """Take a whole line."""
        read = self.read(line, is_ended=True)
        if read.label is not None:
            self._section = read.label
            self._labelled.add(read.label)
        if read.target is None:
            return
        if read.target in self._labelled:
            self.filled.add(read.target)
        if read.target == "actions":
            self.ids += [each for each in _BETWEEN_IDS.split(read.text) if each]
            self.is_none = self.is_none or read.is_none
        elif read.target == "headline":
            self.headline = read.text
        elif not read.is_none and self.has_room(read.target):
            self.lines[read.target].append(read.text)

    def read(self, line: str, *, is_ended: bool) -> _Read:
        """What a line is, or as much of it as its beginning tells; changes nothing."""
        line = _BLANKS.sub(" ", line).lstrip(" ")
        if not is_ended and _may_become_label(line):
            return _Read()
        label, rest = _split_label(line, is_ended=is_ended)
        if label is None:
            if not is_ended and line in _BULLETS:
                return _Read()
            rest = line[1:] if _BULLET.match(line) or line in _BULLETS else line
        rest = rest.strip(" ")
        if not rest:
            return _Read(label)
        section = label or self._section
        # A headline is one line: a second one is a finding.
        target: Section = "findings" if section == "headline" and self.headline else section
        if target == "headline":
            return _Read(label, target, _fit(rest, target, is_ended=is_ended))
        folded = rest.casefold()
        if is_ended and folded in _NONE:
            return _Read(label, target, is_none=True)
        if not is_ended and any(word.startswith(folded) for word in _NONE):
            return _Read(label)
        return _Read(label, target, rest if target == "actions" else _fit(rest, target, is_ended=is_ended))


def _may_become_label(line: str) -> bool:
    """Whether more text could make a label of this beginning of a line, or has just done so."""
    word = line[:6].lstrip(_BEFORE) + line[6:]
    folded = word.casefold()
    if any(label.startswith(folded) for label in _LABEL_OF):
        return True
    return any(folded.startswith(label) and not folded[len(label) :].strip("*_ ") for label in _LABEL_OF)


def _split_label(line: str, *, is_ended: bool) -> tuple[Section | None, str]:
    """The section that a line opens, and the rest of the line."""
    found = _LABEL.match(line)
    if found is None or (not found[3] and not is_ended):
        return None, line
    section = _LABEL_OF.get(found[2].casefold())
    if section is None:
        return None, line
    rest = line[found.end() :]
    # The closing half of what stood before the label; without an opening half it belongs to the text.
    return section, rest.lstrip("*_ ") if found[1].strip("# ") else rest


def _fit(text: str, section: Section, *, is_ended: bool) -> str:
    """The text within the section's bound, or of an unended one what will stay whatever follows."""
    most = MAX_CHARS[section]
    least = most - _CUT_CHARS
    if len(text) < (most if is_ended else least):
        return text
    # A line of exactly ``most`` characters is what the grammar's bound leaves of a longer one.
    cut = text.rfind(" ", least, most - 1)
    kept = text[: cut if cut >= 0 else least].rstrip(" ")
    return kept + _ELLIPSIS if is_ended else kept
