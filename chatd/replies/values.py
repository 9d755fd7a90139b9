"""How numbers, units and times of the record are written for people.

A number is shown as the record has it; only a calculated one with a long tail (183.17308308399453) is shortened, and
then the exact value stays in the fact's ``value``. A time is the hospital's local one; the date is left out only today.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from chatd.replies.wording import Lang, say
from chatd.safety.words import zone

#: Digits after the point that a laboratory or a monitor writes; a longer tail was calculated, not measured.
MAX_DECIMALS = 4
#: Clocks of analysers and of this machine differ a little; beyond this a result is dated in the future.
CLOCK_TOLERANCE = timedelta(minutes=10)

_UNITS = {
    "Cel": "°C",
    "[degF]": "°F",
    "mm[Hg]": "mmHg",
    "cm[H2O]": "cmH2O",
    "mL/min/{1.73_m2}": "mL/min/1.73 m²",
    "mL/min/1.73.m2": "mL/min/1.73 m²",
    "mL/min/1.73m2": "mL/min/1.73 m²",
    "{beats}/min": "/min",
    "{breaths}/min": "/min",
    "[pH]": "",
    "1": "",
    "(score)": "",
    "kg/m2": "kg/m²",
}
_ANNOTATION = re.compile(r"\{[^{}]*\}|\(score\)")


def number(value: float) -> str:
    """``value`` without zeros at its end and, up to 10^15, without exponent: 45.0 is "45", 0.04 is "0.04".

    More than ``MAX_DECIMALS`` digits after the point are rounded half to even: to 2 from 1 upwards, else to 3
    significant ones, so that no small value becomes 0. NaN and infinities, which no layer holds, are "?".
    """
    if not math.isfinite(value):
        return "?"
    exact = Decimal(repr(value))
    if exact and not -12 <= exact.adjusted() <= 15:
        return f"{value:.3g}"  # no laboratory's number: a power of ten is readable, a row of zeros is not
    text = _plain(exact)
    if len(text.partition(".")[2]) <= MAX_DECIMALS:
        return text
    if abs(exact) >= 1:
        return _plain(exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_EVEN))
    return _plain(exact.quantize(Decimal((0, (1,), exact.adjusted() - 2)), rounding=ROUND_HALF_EVEN))


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def exact(value: float) -> float | int:
    """``value`` for the wire: a whole number without its ".0"."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def unit(text: str | None) -> str:
    """A unit for people: UCUM's "mm[Hg]" as "mmHg", without annotations in braces; "" where nothing is to be shown."""
    if text is None:
        return ""
    stripped = text.strip()
    if stripped in _UNITS:
        return _UNITS[stripped]
    return _ANNOTATION.sub("", stripped).strip()


def stamp(at: datetime | None, *, milliseconds: bool = False) -> str | None:
    """RFC 3339 in UTC: "2026-01-15T06:10:00Z", with milliseconds where asked or where the time has any."""
    if at is None:
        return None
    precise = milliseconds or at.microsecond != 0
    return at.astimezone(UTC).isoformat(timespec="milliseconds" if precise else "seconds").replace("+00:00", "Z")


class Times:
    """Writes moments for one answer: local to the hospital, relative to ``now`` (aware)."""

    def __init__(self, now: datetime, timezone: str, lang: Lang) -> None:
        self.now = now
        self._zone, self._suffix = zone(timezone)
        self._lang = lang

    def is_future(self, at: datetime | None) -> bool:
        """True for a moment that has not come yet, clocks' tolerance apart."""
        return at is not None and at > self.now + CLOCK_TOLERANCE

    def text(self, at: datetime | None, *, ago: bool = True) -> str:
        """A moment for people: "06:10" today, "2026-01-14 06:10 (yesterday)", "2012-05-03 (13 years ago)".

        ``ago`` False leaves out what stands in brackets. A time of exactly midnight, local or UTC, is a date without a
        time in most sources; only its date is written.
        """
        if at is None:
            return say("time.missing", self._lang)
        local = at.astimezone(self._zone)
        today = self.now.astimezone(self._zone).date()
        midnight = time(0)
        bare = local.time() == midnight or at.astimezone(UTC).time() == midnight
        day = local.date() if local.time() == midnight or not bare else at.astimezone(UTC).date()
        clock = "" if bare else f"{local:%H:%M}{self._suffix}"
        if day == today and clock:
            return clock
        written = f"{day.isoformat()} {clock}".strip()
        past = self.ago(at) if ago else ""
        return f"{written} ({past})" if past else written

    def ago(self, at: datetime) -> str:
        """How long ago in whole units, never rounded up: "yesterday", "3 years ago"; "" for today and the future."""
        then, today = at.astimezone(self._zone).date(), self.now.astimezone(self._zone).date()
        days = (today - then).days
        if days <= 0:
            return ""
        if days == 1:
            return say("ago.day", self._lang)
        months = (today.year - then.year) * 12 + today.month - then.month - (today.day < then.day)
        if months < 2 and days < 60:
            return say("ago.days", self._lang, n=days)
        if months < 12:
            return say("ago.month" if months == 1 else "ago.months", self._lang, n=months)
        years = months // 12
        return say("ago.year" if years == 1 else "ago.years", self._lang, n=years)
