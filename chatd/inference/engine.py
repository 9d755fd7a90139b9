"""The seam between chatd and whatever writes text: one small interface, and the same conformance suite for all.

An engine knows token ids and a grammar. It knows nothing of patients, queues or phones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from chatd.inference.jobs import FinishReason, ModelCard


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A text to be written.

    ``segments``: the prompt as token ids, cut where its beginnings are shared: two generations whose first n segments
    are equal share the work on them. The first begins with the model's ``<bos>``, the last ends where the model goes
    on. ``grammar``: Lark, as llguidance reads it; None: free text. ``max_tokens``: at least 1. ``deadline_ms``: on
    the engine's monotonic clock (``Clock.monotonic_ms``); None: no limit. ``is_urgent``: may use a reserved slot.
    ``temperature`` 0: the most probable token. ``seed``: equal seeds give equal texts where the engine can.
    """

    id: str
    segments: tuple[tuple[int, ...], ...]
    grammar: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    deadline_ms: int | None = None
    is_urgent: bool = False
    salt: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of text, never half a character; may be several tokens."""

    text: str


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The one last event. ``text``: all deltas joined. ``error``: what failed, for the log, without any text of the
    prompt. ``prefix_hit_tokens``: tokens of the prompt whose work was there already. Times from ``generate``."""

    reason: FinishReason
    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    prefix_hit_tokens: int = 0
    ttft_ms: int | None = None
    generation_ms: int | None = None
    choice_logprobs: tuple[float, ...] = ()
    error: str = ""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """``slots``: generations that run at once; ``reserved`` of them take only urgent ones; ``active``: running now."""

    slots: int
    reserved: int
    active: int

    @property
    def free(self) -> int:
        """Slots that anything may take."""
        return max(0, self.slots - self.reserved - self.active)

    @property
    def free_urgent(self) -> int:
        """Slots that an urgent generation may take: the free and the reserved ones."""
        return max(0, self.slots - self.active)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """``steps``: finished steps (of prefill or of decode) since the start, only ever growing. ``age_ms``: since the
    last of them, 0 while nothing is running."""

    steps: int
    age_ms: int


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``context_tokens``: prompt and text together. ``stop_ids``: tokens that end a turn. ``bos_id``: None without."""

    engine: str
    model: ModelCard
    context_tokens: int
    stop_ids: tuple[int, ...]


class EngineError(Exception):
    """The engine cannot start or go on; the text is for the log and holds nothing of a prompt."""


class EngineFull(EngineError):
    """No slot for this generation; the caller asks ``capacity`` first and has raced with nobody but itself."""


class Engine(Protocol):
    """One engine in one event loop. All methods are called from that loop.

    ``start`` and ``stop`` are called once each; ``stop`` twice does no harm.
    """

    @property
    def info(self) -> EngineInfo:
        """Valid after ``start``."""

    async def start(self) -> None:
        """Load the model and be ready. Raises EngineError."""

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, let running texts end for at most ``drain_s``, cancel the rest, free everything."""

    def generate(self, generation: Generation) -> AsyncGenerator[Delta | Finished, None]:
        """Deltas, then exactly one Finished, whatever happens: stop, length, deadline, cancel, failure.

        Taking the first event submits it. Raises EngineFull or, for a prompt that cannot fit, EngineError, before the
        first event and never after it. A consumer that goes away (``aclose``, or its task is cancelled) frees the slot
        as ``cancel`` does.
        """

    def cancel(self, generation_id: str) -> None:
        """End a running generation with ``cancelled`` at the next step; an unknown id changes nothing."""

    async def warm(self, segments: Sequence[tuple[int, ...]], salt: str = "") -> int:
        """Do the work on a shared beginning ahead; returns the tokens that are now at hand. Twice does nothing."""

    def capacity(self) -> Capacity:
        """As of now."""

    def progress(self) -> Progress:
        """As of now; age of the last step is how a hung engine is told from a busy one."""
