"""Which beginnings of prompts are kept, so that the work on them is done once for many.

Nothing here knows what is kept: a store maps a beginning to any value and its size. A sliding-window cache cannot be
cut back, so only whole boundaries are found again, never a part of one.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

Value = TypeVar("Value")

#: A boundary that adds fewer tokens than this to the one before it is none: keeping it costs more (a step of prefill
#: that ends early, a copy of everything before it) than doing the work again.
MIN_ADDED_TOKENS: Final = 64


class Boundary(NamedTuple):
    """The end of a shared beginning. ``key``: digest over the salt and every token before it. ``tokens``: how many
    they are. ``depth``: 0 for the most widely shared."""

    key: bytes
    tokens: int
    depth: int


def boundaries(segments: Sequence[Sequence[int]], salt: str, *, is_whole: bool = False) -> tuple[Boundary, ...]:
    """The boundaries of a prompt, widest first.

    The end of the last segment is one only with ``is_whole``: a model needs at least one token to go on from. Which
    ends count depends on the lengths alone, so that a prompt is cut in the same places whether or not a part of it
    is found, and its text is the same to the last bit.
    """
    digest = hashlib.blake2b(salt.encode(), digest_size=16, person=b"chatd prefix")
    found: list[Boundary] = []
    tokens, kept_tokens = 0, 0
    for depth, segment in enumerate(segments if is_whole else segments[:-1]):
        digest.update(array("I", segment).tobytes())
        tokens += len(segment)
        if tokens - kept_tokens >= MIN_ADDED_TOKENS:
            found.append(Boundary(digest.copy().digest(), tokens, depth))
            kept_tokens = tokens
    return tuple(found)


class _Kept(Generic[Value]):
    """One entry; ``used`` grows with each use of the store."""

    __slots__ = ("depth", "size_bytes", "used", "value")

    def __init__(self, value: Value, size_bytes: int, depth: int, used: int) -> None:
        self.value = value
        self.size_bytes = size_bytes
        self.depth = depth
        self.used = used


class PrefixStore(Generic[Value]):
    """Values by boundary within ``max_bytes``; 0 keeps nothing.

    Room is made where fewest lose: the deepest (most narrowly shared) go first, among them the one that was not used
    for longest. A value that only wider or equally fresh ones would have to leave for is not taken.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[bytes, _Kept[Value]] = {}
        self._size_bytes = 0
        self._uses = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, boundary: Boundary) -> bool:
        return boundary.key in self._kept

    def longest(self, prompt: Sequence[Boundary]) -> Boundary | None:
        """The deepest boundary of a prompt that is kept, for looking only."""
        return next((boundary for boundary in reversed(prompt) if boundary.key in self._kept), None)

    def use(self, prompt: Sequence[Boundary]) -> tuple[Boundary, Value] | None:
        """The deepest kept boundary and its value. All kept beginnings of the prompt count as used: they are what is
        left of it when the deeper ones go."""
        self._uses += 1
        best: tuple[Boundary, Value] | None = None
        for boundary in prompt:
            if (kept := self._kept.get(boundary.key)) is not None:
                kept.used = self._uses
                best = (boundary, kept.value)
        return best

    def put(self, boundary: Boundary, value: Value, size_bytes: int) -> bool:
        """Keep a value; False, with the store as it was, if there is no room for one as narrow as this."""
        if boundary.key in self._kept:
            return True
        leaving: list[bytes] = []
        free_bytes = self._max_bytes - self._size_bytes
        if size_bytes > free_bytes:
            for key, kept in sorted(self._kept.items(), key=lambda item: (-item[1].depth, item[1].used)):
                if kept.depth < boundary.depth or size_bytes <= free_bytes:
                    break
                leaving.append(key)
                free_bytes += kept.size_bytes
        if size_bytes > free_bytes:
            return False
        for key in leaving:
            self._size_bytes -= self._kept.pop(key).size_bytes
        self._uses += 1
        self._kept[boundary.key] = _Kept(value, size_bytes, boundary.depth, self._uses)
        self._size_bytes += size_bytes
        return True

    def clear(self) -> None:
        self._kept.clear()
        self._size_bytes = 0
