"""What a prompt leaves out when it is too long: a table of what matters more, and one rule to fill a budget by it.

Never left out: the rules and the three shared layers, who the patient is, allergies, active medicines, what a red flag
rests on, and the question. Everything else stands on shelves, best first. A shelf is cut at one place, and older
results wait until all latest ones are in: an older value never stands alone where a newer one exists. An item is in
whole or not at all: half a report misleads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from protocols.errors import ChatdError

T = TypeVar("T")

OLDER_RESULTS = "older results"

#: Shelves of the patient's record, most important first: the words that the prompt uses for what it leaves out.
PATIENT_SHELVES: tuple[str, ...] = (
    "latest abnormal results",
    "latest vital signs",
    "ECG reports",
    "active conditions",
    "notes",
    "other latest results",
    "other reports",
    OLDER_RESULTS,
    "past conditions",
    "stopped medicines",
    "procedures, encounters and other events",
)

#: Shelves that stay empty unless others are in whole.
NEEDS: dict[str, tuple[str, ...]] = {
    OLDER_RESULTS: ("latest abnormal results", "latest vital signs", "other latest results"),
}

#: Shelves of a question, most important first. A protocol's two best sections stand before the conversation, since
#: an answer has to quote them; the conversation before further sections, since "and the dose?" needs it.
QUESTION_SHELVES: tuple[str, ...] = (
    "best protocol sections",
    "earlier messages",
    "further protocol sections",
)

#: The best protocol sections: as many as an answer usually cites.
BEST_QUOTES = 2

#: Part of what the shared layers leave that the patient may fill. Fixed, so that the patient's part of the prompt
#: does not change with the length of a question, and the model's work on it can be used again for the next one.
PATIENT_SHARE = 0.75


class BudgetTooSmall(ChatdError):
    """What is never left out does not fit: there is no prompt, and the answer comes from facts alone."""

    def __init__(self, needed_tokens: int, budget_tokens: int) -> None:
        super().__init__(f"{needed_tokens} tokens needed, {budget_tokens} given")
        self.needed_tokens = needed_tokens
        self.budget_tokens = budget_tokens


class LeftOut(msgspec.Struct, frozen=True):
    """How many items of a shelf a prompt does not hold."""

    what: str
    count: int


class Shelf:
    """Items of one kind, best first; ``needs`` names the shelves that must be in whole before its first item.

    ``write`` gives an item's text; it is called, and its tokens are counted, when an item is first looked at.
    """

    def __init__(self, what: str, items: Sequence[T], write: Callable[[T], str], needs: tuple[str, ...] = ()) -> None:
        self.what = what
        self.needs = needs
        self._length = len(items)
        self._text: Callable[[int], str] = lambda index: write(items[index])
        self._costs: list[int] = []

    def __len__(self) -> int:
        return self._length

    def cost(self, index: int, count_tokens: Callable[[str], int]) -> int:
        """Tokens of the item at ``index``; items before it have been asked for already."""
        if index == len(self._costs):
            self._costs.append(count_tokens(self._text(index)))
        return self._costs[index]


Taken = tuple[int, ...]
"""How many items of each shelf are in, from its first on."""


def take(shelves: Sequence[Shelf], room_tokens: int, count_tokens: Callable[[str], int]) -> Taken:
    """Fill ``room_tokens`` from the shelves in their order; a shelf ends at its first item that does not fit."""
    taken: list[int] = []
    cut: set[str] = set()
    for shelf in shelves:
        number = 0
        while (
            cut.isdisjoint(shelf.needs)
            and number < len(shelf)
            and (cost := shelf.cost(number, count_tokens)) <= room_tokens
        ):
            room_tokens -= cost
            number += 1
        if number < len(shelf):
            cut.add(shelf.what)
        taken.append(number)
    return tuple(taken)


def fit(
    shelves: Sequence[Shelf],
    limit_tokens: int,
    count_tokens: Callable[[str], int],
    measure: Callable[[Taken], int],
) -> Taken:
    """The most of the shelves with which ``measure`` stays within ``limit_tokens``; nothing if even that is more.

    ``measure`` counts the text as it will be sent. A tokenizer's count of a whole differs from the sum of its
    parts, so what was taken by the sum is measured, and less is taken until it fits.
    """
    nothing = (0,) * len(shelves)
    room_tokens = limit_tokens - measure(nothing)
    while room_tokens >= 0:
        taken = take(shelves, room_tokens, count_tokens)
        over_tokens = measure(taken) - limit_tokens
        if over_tokens <= 0:
            return taken
        # Steps grow with the room, so that a tokenizer of any kind is met in some tens of rounds.
        room_tokens -= max(over_tokens, 1 + room_tokens // 32)
    return nothing


def left_out(shelves: Sequence[Shelf], taken: Taken) -> tuple[LeftOut, ...]:
    """What ``taken`` leaves on the shelves; shelves that are wholly taken are not named."""
    return tuple(
        LeftOut(shelf.what, len(shelf) - number)
        for shelf, number in zip(shelves, taken, strict=True)
        if number < len(shelf)
    )


_LETTERS = bytes(range(ord("A"), ord("Z") + 1)) + bytes(range(ord("a"), ord("z") + 1)) + bytes(range(0x80, 0x100))


def estimate_tokens(text: str) -> int:
    """Tokens of ``text`` without a tokenizer, rather too many than too few.

    Gemma's tokenizer gives each digit a token of its own; signs are counted so too, and letters by threes
    (an English or Portuguese word's pieces are longer on the whole, an accented letter has two bytes).
    """
    data = text.encode("utf-8", errors="replace")
    signs = data.translate(None, _LETTERS)
    letters = len(data) - len(signs)
    return len(signs.translate(None, b" \t\r\v\f")) + -(-letters // 3)
