"""Quick actions: the catalogue's rows as proposals that a person prepares, confirms or dismisses."""

from __future__ import annotations

from chatd.actions.drafts import DRAFTABLE, draft_of
from chatd.actions.reasons import DismissReason, dismiss_reasons
from chatd.actions.rules import (
    PROPOSAL_TTL,
    Actor,
    Proposal,
    Status,
    Step,
    needs_patient,
    propose,
    proposed_action,
)
from chatd.actions.service import Actions

__all__ = [
    "DRAFTABLE",
    "PROPOSAL_TTL",
    "Actions",
    "Actor",
    "DismissReason",
    "Proposal",
    "Status",
    "Step",
    "dismiss_reasons",
    "draft_of",
    "needs_patient",
    "propose",
    "proposed_action",
]
