"""Folding text so that spellings meet: accents, case, typographic signs and invisible ones. One way for all rooms."""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
#: Signs that phones and word processors put in place of plain ones; ordinal signs would become letters.
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc\u0060\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        "\u00b5": "u",
        "\u03bc": "u",
        "\u2192": " -> ",
        "\u2265": ">=",
        "\u2264": "<=",
        "\u00ba": " ",
        "\u00aa": " ",
    }
)
_SPACE = re.compile(r"[^\S\n]+")


def without_accents(text: str) -> str:
    """``text`` without accents and compatibility forms, case kept: "Ação SpO₂" becomes "Acao SpO2"."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))


def fold(text: str) -> str:
    """Lower case without accents and invisible signs, with plain quotes, dashes and spaces; line breaks are kept.

    "Ação – SpO₂" becomes "acao - spo2". Folding twice changes nothing.
    """
    plain = _INVISIBLE.sub("", text).translate(_TYPOGRAPHIC)
    if not plain.isascii():
        # Casefolding can bring back what was taken apart ("ſ", "İ"), so accents go before and after it.
        plain = without_accents(without_accents(plain).casefold()).translate(_TYPOGRAPHIC)
    return _SPACE.sub(" ", plain.casefold()).strip()


def fold_line(text: str) -> str:
    """``fold`` on one line: every run of blanks and line breaks is one space."""
    return " ".join(fold(text).split())
