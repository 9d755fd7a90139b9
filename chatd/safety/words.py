"""Small text rules that triage and the medication checks share: keys, languages, numbers and times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from context.memo import remembers
from context.text import fold


def key(text: str) -> str:
    """``fold`` with every run of other signs than letters and digits as one space: a name to look up by."""
    return re.sub(r"[^a-z0-9]+", " ", fold(text)).strip()


@remembers(8192)
def name_key(name: str) -> str:
    """``key`` of the name of an observation, remembered: a record says the same few names hundreds of times.

    For names of results only, never for what somebody wrote about a patient.
    """
    return key(name)


def slug(text: str) -> str:
    """``key`` with underscores, at most 48 characters, never empty: the tail of an id."""
    return key(text).replace(" ", "_")[:48].strip("_") or "unnamed"


def is_portuguese(lang: str) -> bool:
    """Whether texts for this language tag are written in Portuguese; anything else gets English."""
    return lang.lower().startswith("pt")


def pick(lang: str, en: str, pt: str) -> str:
    """The one of the two texts that ``lang`` asks for."""
    return pt if is_portuguese(lang) else en


def number(value: float) -> str:
    """A number as the record has it: no trailing zeros, no exponent for ordinary results."""
    if not math.isfinite(value):
        return "?"
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


@lru_cache(maxsize=64)
def zone(name: str) -> tuple[tzinfo, str]:
    """The hospital's time zone and what to write behind its times: "" for a known zone, " UTC" where it is unknown."""
    try:
        return (UTC, " UTC") if name == "UTC" else (ZoneInfo(name), "")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC, " UTC"


def moment(at: datetime | None, lang: str, timezone: str = "UTC") -> str:
    """A time for people in the hospital's zone, as all times of an answer: "2026-01-15 06:10"; UTC says so."""
    if at is None:
        return pick(lang, "time not recorded", "hora não registada")
    local, suffix = zone(timezone)
    return f"{at.astimezone(local):%Y-%m-%d %H:%M}{suffix}"


def stamp(at: datetime | None) -> str | None:
    """A time for the wire: RFC 3339 in UTC with milliseconds."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def longest_by_first_word(phrases: Iterable[str]) -> dict[str, int]:
    """By first word, of how many words the longest phrase is: whoever looks for phrases in a text tries no longer ones.

    A word that begins none is not in it.
    """
    longest: dict[str, int] = {}
    for phrase in phrases:
        if words := phrase.split():
            longest[words[0]] = max(longest.get(words[0], 0), len(words))
    return longest
