"""Text from records made safe to show: no control characters, no hidden direction changes, no markup.

A text whose direction is overridden reads differently from what is stored: "01 mg" may be stored and "10 mg"
seen. Such a sign is never silently dropped: a visible "�" stands in its place.
"""

from __future__ import annotations

import html.parser
import re
from collections import Counter
from typing import Any

#: Levels of objects and lists in one resource. The deepest of the official R4 examples has 14.
MAX_DEPTH = 64
#: A number beyond this is no measurement of a patient; it also keeps every number out of exponent notation.
MAX_NUMBER = 1e15

NAME_CHARS = 300
TEXT_CHARS = 2_000
REPORT_CHARS = 20_000

#: U+202D and U+202E force a direction upon letters and digits.
_OVERRIDES = re.compile("[\u202d\u202e]")
#: Controls but tab and line feed. They become a blank: without it "1", NUL, "0" would become "10".
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Signs of no width: direction marks, embeddings, isolates, joiners of nothing, tag characters.
_HIDDEN = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202c\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x85]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_ODD = re.compile("[^\t\n\x20-\x7e\u00a0-\u00ac\u00ae-\u0619\u0620-\u200a\u2010-\u2027\u202f-\u205f\u2070-\ud7ff]")
_BLANKS = re.compile(r"\s+")
_TIME_KEYS = frozenset(
    (
        *("effectiveDateTime", "effectiveInstant", "issued", "authoredOn", "recordedDate", "dateAsserted"),
        *("onsetDateTime", "abatementDateTime", "performedDateTime", "occurrenceDateTime", "deceasedDateTime"),
        *("start", "end", "date", "created", "lastUpdated", "lastOccurrence"),
    )
)
_LOOSE_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?")


class Unreadable(Exception):
    """A resource that cannot be read safely; ``reason`` holds no text of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Ambiguous(dict[str, Any]):
    """A JSON object that names one member twice: which of the two is meant, nobody knows."""


def clean_text(text: str, noted: Counter[str]) -> str:
    """``text`` without hidden signs; what was done is counted in ``noted``."""
    if not _ODD.search(text):
        return text
    text = _LINE_ENDS.sub("\n", text)
    text, lone = _SURROGATES.subn("\ufffd", text)
    text, overridden = _OVERRIDES.subn("\ufffd", text)
    text, hidden = _HIDDEN.subn("", text)
    if overridden:
        noted["text direction override made visible"] += 1
    text, controls = _CONTROLS.subn(" ", text)
    if hidden or lone or controls:
        noted["hidden characters removed"] += 1
    return text


def clean(node: Any, noted: Counter[str], key: str = "", depth: int = 0) -> Any:
    """A copy of a parsed resource with safe texts, finite numbers and whole times.

    Raises:
        Unreadable: too deep, a number that is not finite or beyond ``MAX_NUMBER``, an object that names a
            member twice, or a modifier extension: FHIR forbids to process what one of those changes unless it
            is understood (https://hl7.org/fhir/R4/extensibility.html#modifierExtension).
    """
    if depth > MAX_DEPTH:
        raise Unreadable("nested too deep")
    if isinstance(node, str):
        return loose_time(node) if key in _TIME_KEYS else clean_text(node, noted)
    if isinstance(node, dict):
        if isinstance(node, Ambiguous):
            raise Unreadable("a member stands twice")
        if node.get("modifierExtension"):
            raise Unreadable("modifier extension not understood")
        return {clean_text(k, noted): clean(v, noted, k, depth + 1) for k, v in node.items() if v not in (None, "")}
    if isinstance(node, list):
        return [clean(v, noted, key, depth + 1) for v in node if v is not None]
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        # The negation also holds for NaN, which compares false with everything.
        if not abs(node) <= MAX_NUMBER:
            raise Unreadable("a number is not finite or too large")
        return node
    return node


def loose_time(text: str) -> str:
    """A time without seconds, with a blank for the T or with "+0100" in the form that FHIR asks for."""
    found = _LOOSE_TIME.fullmatch(text.strip())
    if found is None:
        return text.strip()
    day, minute, second, zone = found.groups()
    if zone and zone != "Z" and ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:]}"
    return f"{day}T{minute}{second or ':00'}{zone or ''}"


def one_line(text: str, limit: int = NAME_CHARS) -> str:
    """``text`` on one line, cut visibly at ``limit`` characters."""
    return cut(_BLANKS.sub(" ", text).strip(), limit)


def cut(text: str, limit: int) -> str:
    """``text``, at most ``limit`` characters; a cut is said."""
    text = text.strip()
    return text if len(text) <= limit else f"{text[: limit - 12].rstrip()} … [cut]"


class _Stripper(html.parser.HTMLParser):
    """Collects the text of a narrative; scripts and styles are left out, blocks become lines."""

    BLOCKS = frozenset(
        (
            "p",
            "div",
            "br",
            "li",
            "tr",
            "table",
            "ul",
            "ol",
            "dt",
            "dd",
            "hr",
            "pre",
            "section",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
        )
    )
    SILENT = frozenset(("script", "style", "head", "title"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self._silent += 1
        elif tag in self.BLOCKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def strip_markup(markup: str, noted: Counter[str]) -> str:
    """The text of a narrative or an HTML report, one line per block, hidden signs removed."""
    stripper = _Stripper()
    stripper.feed(markup)
    stripper.close()
    # Cleaned once more: a character reference such as "&#x202e;" only becomes a character here.
    text = clean_text("".join(stripper.parts), noted)
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
