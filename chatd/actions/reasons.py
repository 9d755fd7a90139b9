"""Why a quick action is dismissed: a closed table, so that no chat text reaches the ledger.

Overrides are counted by reason, in the manner of the override reasons of CDS Hooks
(https://cds-hooks.hl7.org/, "feedback"); the codes and texts are chatd's own.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec


class DismissReason(msgspec.Struct, frozen=True):
    """One reason: ``code`` on the wire and in the ledger, ``en`` and ``pt`` for people."""

    code: str
    en: str
    pt: str


class _Table(msgspec.Struct, frozen=True):
    reasons: tuple[DismissReason, ...]


@cache
def dismiss_reasons() -> tuple[DismissReason, ...]:
    """All reasons in the order in which people are shown them."""
    data = resources.files("chatd.actions").joinpath("dismiss_reasons.json").read_bytes()
    return msgspec.json.decode(data, type=_Table).reasons


def is_dismiss_reason(code: str | None) -> bool:
    """True if ``code`` stands in the table."""
    return any(reason.code == code for reason in dismiss_reasons())
