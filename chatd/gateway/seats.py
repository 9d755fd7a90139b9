"""How many connections one person may hold at once: with one more, an older one goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)

#: Wall boards of a department that share an account: more than one has walls, and fewer than a script opens.
BOARDS = 32


class Seats(Generic[Holder]):
    """Open connections by place (a person in a department with a kind of device), a bounded number in each.

    Pure rules: who has to go is returned and not closed here.
    """

    def __init__(self) -> None:
        #: In each place who came when, the first one first, with their device.
        self._places: defaultdict[Hashable, dict[Holder, str | None]] = defaultdict(dict)
        self._place_of: dict[Holder, Hashable] = {}

    def take(self, holder: Holder, place: Hashable, device: str | None, most: int) -> Holder | None:
        """Seat ``holder`` where ``most`` may be; returns who has to go, None where there is room. Twice is as once.

        It is the oldest of the same device, if there is one: a phone that comes back by another way than it went is not
        to close somebody's other one. Else it is the oldest.
        """
        if holder in self._place_of:
            return None
        seated = self._places[place]
        going = None
        if len(seated) >= most:
            same = (one for one, theirs in seated.items() if device is not None and theirs == device)
            going = next(same, next(iter(seated)))
            self.leave(going)
        # The place may have become empty, and so be gone.
        self._places[place][holder] = device
        self._place_of[holder] = place
        return going

    def leave(self, holder: Holder) -> None:
        """Give the seat back; without effect for who has none."""
        place = self._place_of.pop(holder, None)
        if place is None:
            return
        self._places[place].pop(holder, None)
        if not self._places[place]:
            del self._places[place]
