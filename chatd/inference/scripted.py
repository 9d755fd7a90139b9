"""An engine that is no model: it writes fixed lines, for tests and for trying chatd without weights.

It keeps every promise of the seam (slots, prefixes, cancel, deadline, stop) and can be told to fail, hang or die at a
step. Its words are its own; nothing of a prompt comes back unless the script is one that says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import Final, Literal

import msgspec

from chatd.clock import Clock, SystemClock
from chatd.inference.engine import Capacity, Delta, EngineError, EngineFull, EngineInfo, Finished, Generation, Progress
from chatd.inference.jobs import FinishReason, ModelCard, Piece
from chatd.inference.texts import Text

#: Tokens of a prompt that one step takes in.
PREFILL_STEP_TOKENS: Final = 2048
#: One token is about a byte of the prompt, so this is as long a prompt as a real model's 32,768 tokens.
CONTEXT_TOKENS: Final = 131_072
#: Shared beginnings that are remembered; only their sizes are kept.
_PREFIXES: Final = 256
_MAX_ACTIONS: Final = 3

_BOS, _START, _END, _EOS = 256, 257, 258, 259

# What it writes under a grammar. No number, no name, no drug: there is nothing that a check could take for a fact.
_LINES: Final[dict[str, tuple[str, ...]]] = {
    "Findings": (
        "The facts above this text were found by rules and stand on their own.",
        "Este texto não vem de um modelo – são frases fixas.",
        "This line is fixed; nothing of the record was read for it.",
        "Nothing here is a statement about the patient.",
    ),
    "Interpretation": (
        "No interpretation is made: no model is loaded.",
        "Sem modelo não há interpretação; os factos acima mantêm-se.",
        "A scripted engine weighs nothing; it shows how an answer travels.",
    ),
    "Recommendations": (
        "Read the facts and the protocol sections that are cited with them.",
        "Start chatd with a model to have an answer written.",
        "Verificar sempre no processo clínico.",
    ),
    "Missing": ("A language model.", "Um modelo de linguagem.", "Everything that a model would have written."),
}
_HEADLINES: Final = (
    "Scripted text: no model has written this.",
    "Texto de ensaio: nenhum modelo escreveu isto.",
)
_FREE: Final = ("scripted", "text", "—", "no", "model", "está", "a", "escrever", "isto", "✓", "palavra", "word")
_TOKEN: Final = re.compile(r"\s*\S{1,4}|\s+")
_ALTERNATIVE: Final = re.compile(r'"([a-z][a-z0-9]*(?:_[a-z0-9]+)+)"')

MODEL: Final = ModelCard(id="scripted", revision="", quantization="", template="")


class ScriptedTokens:
    """Bytes as token ids, framed as one turn: what ``chatd.inference.tokens.Tokens`` is for a real model.

    Ids 0 to 255 are UTF-8 bytes; ``<bos>``, the marks of a turn and ``<eos>`` follow, so no text can become one.
    """

    bos_id = _BOS
    stop_ids = (_EOS, _END)
    special_ids = frozenset((_BOS, _START, _END, _EOS))
    template_hash = ""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def count(self, text: str) -> int:
        return len(text.encode())

    def prompt(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]:
        """One segment of ids per piece, one user turn around them all."""
        segments = [self.encode(piece.text) for piece in pieces] or [()]
        segments[0] = (_BOS, _START, *b"user\n", *segments[0])
        segments[-1] = (*segments[-1], _END, *b"\n", _START, *b"model\n")
        return tuple(segments)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong at the engine's step number ``step`` (1 is the first).

    ``fail``: every running text ends with an error. ``hang``: no further step is made, ever. ``crash``: this process
    is killed (SIGKILL).
    """

    step: int
    kind: Literal["fail", "hang", "crash"]

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read "hang:50". Raises ValueError."""
        try:
            kind, step = text.split(":")
            return msgspec.convert({"kind": kind, "step": int(step)}, cls)
        except (ValueError, msgspec.ValidationError):
            raise ValueError("a fault is fail, hang or crash, a colon and the number of a step") from None


Writer = Callable[[Generation], str]


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """``write``: the whole text for a generation; it is cut at ``max_tokens``. ``faults``: what goes wrong and when."""

    write: Writer
    faults: tuple[Fault, ...] = ()


def write_sections(generation: Generation) -> str:
    """Fixed lines: valid sections with ids of the grammar's actions, or words without end where there is no grammar.

    Which lines is told by a digest over the prompt (and the seed, above temperature 0): equal prompts, equal texts.
    """
    digest = hashlib.sha256()
    for segment in generation.segments:
        digest.update(array("q", segment).tobytes())
    if generation.temperature > 0:
        digest.update(repr(generation.seed).encode())
    dice = iter(digest.digest())
    if generation.grammar is None:
        start = next(dice)
        return " ".join(_FREE[(start + n) % len(_FREE)] for n in range(generation.max_tokens + 1))
    ids = sorted(set(_ALTERNATIVE.findall(generation.grammar)))
    parts = [f"Headline: {_HEADLINES[next(dice) % len(_HEADLINES)]}"]
    for label, lines in _LINES.items():
        first = next(dice)
        parts += [f"{label}:", f"- {lines[first % len(lines)]}"]
        if first & 0x80:
            parts.append(f"- {lines[(first + 1) % len(lines)]}")
    first = next(dice)
    chosen = [ids[(first + n) % len(ids)] for n in range(min(first % (_MAX_ACTIONS + 1), len(ids)))]
    parts.append(f"Actions: {', '.join(chosen) or 'none'}\n")
    return "\n".join(parts)


def prompt_text(generation: Generation) -> str:
    """The prompt's text again, for scripts that are told to use it; ``ScriptedTokens`` made the ids."""
    return bytes(token for segment in generation.segments for token in segment if token < _BOS).decode(errors="replace")


class _Row(Text):
    """One running text."""

    def __init__(self, generation: Generation, text: str, hit_tokens: int, now_ms: int) -> None:
        super().__init__()
        self.generation = generation
        self.tokens: Iterator[str] = islice(
            (found.group() for found in _TOKEN.finditer(text)), generation.max_tokens + 1
        )
        self.prompt_tokens = sum(map(len, generation.segments))
        self.hit_tokens = hit_tokens
        self.left_tokens = self.prompt_tokens - hit_tokens
        self.begun_ms = now_ms
        self.first_ms: int | None = None
        self.made = 0
        self.is_cancelled = False


class ScriptedEngine:
    """The scripted engine; see ``engine.Engine`` for what each method promises.

    One step takes in ``PREFILL_STEP_TOKENS`` of one prompt and writes one token of every text that is past its
    prompt, then waits ``step_ms`` by ``pause``.

    Args:
        script: What to write; None: ``write_sections`` without faults.
        pause: Waits for so many seconds; a test's own goes with its own ``clock``.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        slots: int = 20,
        reserved: int = 2,
        clock: Clock | None = None,
        step_ms: float = 0.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._script = script or Script(write=write_sections)
        self._faults = {fault.step: fault.kind for fault in self._script.faults}
        self._slots = slots
        self._reserved = reserved
        self._clock = clock or SystemClock()
        self._step_s = step_ms / 1000
        self._pause = pause
        self._rows: dict[str, _Row] = {}
        self._prefixes: OrderedDict[int, int] = OrderedDict()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._steps = 0
        self._stepped_ms = 0
        self._is_open = False
        self._task: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="scripted", model=MODEL, context_tokens=CONTEXT_TOKENS, stop_ids=ScriptedTokens.stop_ids
        )

    async def start(self) -> None:
        self._is_open = True
        self._task = asyncio.create_task(self._run(), name="scripted engine")

    async def stop(self, drain_s: float) -> None:
        self._is_open = False
        task = self._task
        if task is None:
            return
        if self._rows and drain_s > 0:
            await asyncio.wait([waiting := asyncio.create_task(self._idle.wait())], timeout=drain_s)
            waiting.cancel()
        self._task = None
        task.cancel()
        await asyncio.wait([task])
        for row in list(self._rows.values()):
            self._finish(row, "cancelled")

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta | Finished, None]:
        row = self._admit(generation)
        try:
            async for event in row:
                yield event
        finally:
            if row.finished is None:
                self._finish(row, "cancelled")

    def cancel(self, generation_id: str) -> None:
        row = self._rows.get(generation_id)
        if row is not None:
            row.is_cancelled = True

    async def warm(self, segments: Sequence[tuple[int, ...]], salt: str = "") -> int:
        if not self._is_open:
            raise EngineError("not running")
        for key, tokens in _boundaries(segments, salt):
            if key not in self._prefixes:
                await self._pause(self._step_s)
                self._keep(key, tokens)
        return sum(map(len, segments))

    def capacity(self) -> Capacity:
        return Capacity(slots=self._slots, reserved=self._reserved, active=len(self._rows))

    def progress(self) -> Progress:
        age_ms = max(0, self._clock.monotonic_ms() - self._stepped_ms) if self._rows else 0
        return Progress(steps=self._steps, age_ms=age_ms)

    def _admit(self, generation: Generation) -> _Row:
        if not self._is_open:
            raise EngineError("not running")
        if generation.id in self._rows:
            raise EngineError("this id is running already")
        tokens = sum(map(len, generation.segments))
        if tokens + generation.max_tokens > CONTEXT_TOKENS:
            raise EngineError(f"prompt of {tokens} tokens does not fit")
        capacity = self.capacity()
        if (capacity.free_urgent if generation.is_urgent else capacity.free) == 0:
            raise EngineFull("no free slot")
        hit_tokens = 0
        # The last segment is always worked on: it holds the token that the model goes on from.
        for key, size in _boundaries(generation.segments[:-1], generation.salt):
            if key not in self._prefixes:
                break
            hit_tokens = size
        now_ms = self._clock.monotonic_ms()
        if not self._rows:
            self._stepped_ms = now_ms
        row = _Row(generation, self._script.write(generation), hit_tokens, now_ms)
        self._rows[generation.id] = row
        self._idle.clear()
        self._work.set()
        return row

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._rows:
                await self._pause(self._step_s)
                if self._rows and not self._step():
                    return  # hung: running, and never again a step

    def _step(self) -> bool:
        """One step of all rows; False when the script says that the engine hangs from here on."""
        fault = self._faults.get(self._steps + 1)
        if fault == "hang":
            return False
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        now_ms = self._clock.monotonic_ms()
        self._steps += 1
        self._stepped_ms = now_ms
        budget_tokens = PREFILL_STEP_TOKENS
        for row in list(self._rows.values()):
            generation = row.generation
            if row.is_cancelled:
                self._finish(row, "cancelled")
            elif fault == "fail":
                self._finish(row, "error", error="scripted failure")
            elif generation.deadline_ms is not None and now_ms >= generation.deadline_ms:
                self._finish(row, "deadline")
            elif row.left_tokens > 0:
                taken = min(row.left_tokens, budget_tokens)
                row.left_tokens -= taken
                budget_tokens -= taken
                if row.left_tokens == 0:
                    for key, size in _boundaries(generation.segments[:-1], generation.salt):
                        self._keep(key, size)
            else:
                self._write(row, now_ms)
        return True

    def _write(self, row: _Row, now_ms: int) -> None:
        token = next(row.tokens, None)
        if token is None:
            self._finish(row, "stop")
        elif row.made == row.generation.max_tokens:
            self._finish(row, "length")
        else:
            row.made += 1
            row.first_ms = now_ms if row.first_ms is None else row.first_ms
            row.add(token)

    def _finish(self, row: _Row, reason: FinishReason, error: str = "") -> None:
        now_ms = self._clock.monotonic_ms()
        finished = Finished(
            reason=reason,
            text="",
            tokens_in=row.prompt_tokens,
            tokens_out=row.made,
            prefix_hit_tokens=row.hit_tokens,
            ttft_ms=None if row.first_ms is None else row.first_ms - row.begun_ms,
            generation_ms=now_ms - row.begun_ms,
            error=error,
        )
        row.end(finished)
        del self._rows[row.generation.id]
        if not self._rows:
            self._idle.set()

    def _keep(self, key: int, tokens: int) -> None:
        self._prefixes[key] = tokens
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > _PREFIXES:
            self._prefixes.popitem(last=False)


def _boundaries(segments: Sequence[tuple[int, ...]], salt: str) -> Iterator[tuple[int, int]]:
    """A key for each beginning, and its size in tokens."""
    key, tokens = hash(salt), 0
    for segment in segments:
        key = hash((key, segment))
        tokens += len(segment)
        yield key, tokens
