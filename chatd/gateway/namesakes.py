"""Which patients of a department have names that may be taken for each other, and what then tells them apart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from chatd.actions.identifiers import Kind, has_number
from context.layers import PatientLayer
from context.lookalike import LookAlikes
from context.store import PatientCard

#: Above this, comparing is done beside the event loop: 5,000 new names take some 0.6 s, known ones 0.1 s.
_MOST_AT_ONCE: Final = 200


class Namesakes:
    """Compares names for one gateway; the keys of a department's names are kept until its list changes."""

    def __init__(self) -> None:
        self._by_department: dict[str, LookAlikes] = {}

    async def among(
        self, department: str, cards: Sequence[PatientCard], also: PatientLayer | None = None
    ) -> Mapping[str, frozenset[str]]:
        """From each patient's id to the ids of those whose names look like theirs; ``also`` need not be in the list.

        Patients without such others are left out.
        """
        if not cards:
            return {}
        names = {card.patient_id: card.name for card in cards}
        if also is not None:
            names[also.patient_id] = also.name
        look_alikes = self._by_department.setdefault(department, LookAlikes())
        if len(names) <= _MOST_AT_ONCE:
            return look_alikes.among(names.items())
        return await asyncio.to_thread(look_alikes.among, tuple(names.items()))


def tells_apart(kind: Kind | None, patient: PatientLayer, others: Sequence[PatientCard]) -> bool:
    """Whether a second identifier of this kind says which of ``patient`` and ``others`` is meant.

    The name never does. A birth date does unless another was born the same day (twins have one family name), and then
    still where the record has no number of its own: nothing better can be typed.
    """
    if kind == "birth_date":
        shared = any(other.birth_date == patient.birth_date for other in others)
        return not shared or not has_number(patient)
    return kind == "identifier"
