"""Caches of functions whose arguments are words that people wrote: they are emptied together, and so hold nobody's
words for longer than whoever empties them allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_caches: WeakSet[_lru_cache_wrapper[Any]] = WeakSet()


def remembers(most: int) -> Callable[[Callable[..., T]], _lru_cache_wrapper[T]]:
    """``functools.lru_cache(most)`` for a function of words; what it remembers goes with ``forget``.

    A cache of what comes out of chatd's own tables alone needs no more than ``lru_cache``.
    """

    def decorate(function: Callable[..., T]) -> _lru_cache_wrapper[T]:
        cached = lru_cache(most)(function)
        _caches.add(cached)
        return cached

    return decorate


def forget() -> None:
    """Empty every cache of this process, from any thread. Costs nothing but doing the work once more."""
    for cached in tuple(_caches):
        cached.cache_clear()


def remembered() -> int:
    """Entries in all of them."""
    return sum(cached.cache_info().currsize for cached in tuple(_caches))
