"""Which characters and times a client may send: what is refused, and never what is rewritten.

Text is used exactly as it was checked. NFC and NFD, accents, µ, emoji with joiners and any script pass; what is
refused is what people cannot see and what changes the meaning of what they do see.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

#: One row per rule: its words for ``detail``, then the characters as a regular expression's class.
REFUSED: Final[tuple[tuple[str, str], ...]] = (
    # A terminal that shows a log or an export obeys these; CR forges lines. Newline and tab are handled apart.
    ("control characters are not allowed", "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"),
    # Overrides and isolates show "01 mg" for "10 mg". The three invisible marks (U+061C, U+200E, U+200F) reorder
    # the numbers beside them as well, and neither English nor Portuguese has a use for them.
    (
        "characters that change the direction of text are not allowed",
        "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069",
    ),
    # Every font shows something else for them, or nothing.
    (
        "private use characters are not allowed",
        "\\ue000-\\uf8ff\\U000f0000-\\U000ffffd\\U00100000-\\U0010fffd",
    ),
    # Half a character: it cannot be written as UTF-8, so it would fail later and elsewhere.
    ("lone surrogates are not allowed", "\\ud800-\\udfff"),
    (
        "noncharacters are not allowed",
        "\\ufdd0-\\ufdef" + "".join(f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(17)),
    ),
    # A second text that only the model reads. Flags made of them (Scotland, Wales) are taken out first.
    ("invisible tag characters are not allowed", "\\U000e0000-\\U000e007f"),
)
LINE_BREAKS: Final = "line breaks and tabs are not allowed here"

_ANY = re.compile("[" + "".join(characters for _, characters in REFUSED) + "]")
_EACH = tuple((rule, re.compile(f"[{characters}]")) for rule, characters in REFUSED)
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")
_BREAK = re.compile(r"[\n\t]")


def refused(text: str, *, multiline: bool) -> str | None:
    """The rule that ``text`` breaks, or None if every character may pass.

    Args:
        text: Any string, also one with lone surrogates.
        multiline: Whether newline and tab may pass; they do where people write prose.
    """
    if not multiline and _BREAK.search(text):
        return LINE_BREAKS
    if _ANY.search(text) is None:
        return None
    bare = _FLAG.sub("", text)
    return next((rule for rule, pattern in _EACH if pattern.search(bare)), None)


#: Years a clock of a phone may claim. Outside of them a clock was never set, or a number was read in another unit.
MIN_YEAR: Final = 2000
MAX_YEAR: Final = 2100

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d{1,12})?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_ORIGINAL = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d{1,12})? ?(?:[Zz]|([+-])(\d\d):?(\d\d))?", re.ASCII
)


def parse_time(text: str, *, original: bool = False) -> datetime | None:
    """The moment that ``text`` names, in UTC, or None if it names none between ``MIN_YEAR`` and ``MAX_YEAR``.

    A leap second (":60") is read as the second before it, because a ``datetime`` has none.

    Args:
        text: RFC 3339 section 5.6, a space allowed for its "T": "2026-01-15T07:45:20.114Z".
        original: Also read what clients of the original design write: no zone at all (taken as UTC),
            or "+0000" after a space, as Swift prints a ``Date``.
    """
    match = (_ORIGINAL if original else _RFC3339).fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    if not MIN_YEAR <= year <= MAX_YEAR or second > 60:
        return None
    offset = timedelta()
    if match[8]:
        if int(match[9]) > 23 or int(match[10]) > 59:
            return None
        offset = timedelta(hours=int(match[9]), minutes=int(match[10])) * (-1 if match[8] == "-" else 1)
    microsecond = int((match[7] or ".0")[1:7].ljust(6, "0"))
    try:
        local = datetime(year, month, day, hour, minute, min(second, 59), microsecond, timezone(offset))
    except ValueError:
        return None
    return local.astimezone(UTC)
