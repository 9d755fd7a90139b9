"""The ledger: what chatd has promised to remember, on disk before anybody is told so."""

from __future__ import annotations

from chatd.ledger.ledger import Ledger, LedgerUnavailable, Why
from chatd.ledger.rows import ActionEvent, ActionRow, Transaction

__all__ = ["ActionEvent", "ActionRow", "Ledger", "LedgerUnavailable", "Transaction", "Why"]
