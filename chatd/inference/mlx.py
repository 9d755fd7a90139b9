"""Apple's MLX as an engine: mlx-lm's batch generator on one thread, behind the seam.

The event loop and the thread talk through a queue of calls one way and one ``call_soon_threadsafe`` per step the other
way. What a text has said so far is kept on the loop's side, so that it is whole even if the thread never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Final

from chatd.clock import Clock
from chatd.inference.engine import (
    Capacity,
    Delta,
    EngineError,
    EngineFull,
    EngineInfo,
    Finished,
    Generation,
    Progress,
)
from chatd.inference.mlx_core import MAX_FAILED_STEPS, Core, Row, Told, segments_error
from chatd.inference.texts import Text

#: How long the thread has to end once it was told to; a step of a large model takes a tenth of it.
_JOIN_S: Final = 5.0


class _Text(Text):
    """One text on the loop's side. ``is_warming``: it takes no slot, and only its end counts."""

    def __init__(self, *, is_warming: bool) -> None:
        super().__init__()
        self.is_warming = is_warming


class MlxEngine:
    """The engine on MLX; see ``engine.Engine`` for what each method promises.

    A failed step ends every running text with ``error``; the engine goes on with fresh caches, and the age in
    ``progress`` grows from the last good step until there is another one, also while nothing runs. After
    ``MAX_FAILED_STEPS`` in a row nothing more is taken.

    Args:
        model: A folder with a model as mlx-lm reads it, or a hub id.
        slots: Texts that run at once, of which ``reserved`` are for urgent ones.
        prefix_cache_bytes: For kept beginnings of prompts; 0: none are kept.
        is_public: Keep to mlx-lm's public interface, which is slower under a grammar and writes the same.
    """

    def __init__(
        self,
        model: Path,
        *,
        slots: int,
        reserved: int,
        prefix_cache_bytes: int,
        clock: Clock,
        is_public: bool = False,
    ) -> None:
        self._model = model
        self._slots = slots
        self._reserved = reserved
        self._prefix_cache_bytes = prefix_cache_bytes
        self._clock = clock
        self._is_public = is_public
        self._texts: dict[str, _Text] = {}
        self._calls: queue.SimpleQueue[Callable[[Core], None] | None] = queue.SimpleQueue()
        self._idle = asyncio.Event()
        self._warming = asyncio.Lock()
        self._warm_ids = (f"warm {n}" for n in itertools.count())
        self._busy_since_ms = 0
        self._is_open = False
        self._is_failing = False
        self._core: Core | None = None
        self._info: EngineInfo | None = None
        self._vocabulary_size = 0
        self._thread: threading.Thread | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("not started")
        return self._info

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Core] = loop.create_future()
        self._idle.set()
        # A daemon: a thread that hangs in the model must not keep a process alive that was told to end.
        self._thread = threading.Thread(target=self._run, args=(loop, loaded), name="mlx", daemon=True)
        self._thread.start()
        core = await loaded
        self._core = core
        self._info = core.info
        self._vocabulary_size = core.vocabulary_size
        self._is_open = True

    async def stop(self, drain_s: float) -> None:
        self._is_open = False
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if drain_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_s)
        self._calls.put(None)
        await asyncio.to_thread(thread.join, _JOIN_S)
        for text_id in list(self._texts):
            self._end(text_id, Finished(reason="cancelled", text=""))

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta | Finished, None]:
        text = self._admit(generation)
        try:
            async for event in text:
                yield event
        finally:
            if text.finished is None:
                self.cancel(generation.id)

    def cancel(self, generation_id: str) -> None:
        if generation_id in self._texts:
            self._calls.put(lambda core: core.cancel(generation_id))

    async def warm(self, segments: Sequence[tuple[int, ...]], salt: str = "") -> int:
        # One after the other: beginnings are made ready ahead of need, and never many at once.
        async with self._warming:
            self._check(segments, 1)
            generation = Generation(id=next(self._warm_ids), segments=tuple(segments), max_tokens=1, salt=salt)
            text = self._submit(generation, is_warming=True)
            try:
                async for _ in text:
                    pass
            finally:
                if text.finished is None:
                    self.cancel(generation.id)
            if text.finished is None or text.finished.reason != "stop":
                raise EngineError("the beginning could not be made ready")
            return text.finished.prefix_hit_tokens

    def capacity(self) -> Capacity:
        active = sum(not text.is_warming for text in self._texts.values())
        return Capacity(slots=self._slots, reserved=self._reserved, active=active)

    def progress(self) -> Progress:
        core = self._core
        if core is None:
            return Progress(steps=0, age_ms=0)
        if not self._texts and not self._is_failing:
            return Progress(steps=core.steps, age_ms=0)
        since_ms = core.stepped_ms if self._is_failing else max(core.stepped_ms, self._busy_since_ms)
        return Progress(steps=core.steps, age_ms=max(0, self._clock.monotonic_ms() - since_ms))

    # --- on the loop ---

    def _check(self, segments: Sequence[tuple[int, ...]], max_tokens: int) -> None:
        if not self._is_open:
            raise EngineError("not running")
        if error := segments_error(segments, self._vocabulary_size):
            raise EngineError(error)
        tokens = sum(map(len, segments))
        if tokens + max_tokens > self.info.context_tokens:
            raise EngineError(f"{tokens} and {max_tokens} tokens do not fit into {self.info.context_tokens}")

    def _admit(self, generation: Generation) -> _Text:
        self._check(generation.segments, generation.max_tokens)
        if generation.max_tokens < 1:
            raise EngineError("a text of no tokens")
        if generation.id in self._texts:
            raise EngineError("this id is running already")
        capacity = self.capacity()
        if (capacity.free_urgent if generation.is_urgent else capacity.free) == 0:
            raise EngineFull("no free slot")
        return self._submit(generation, is_warming=False)

    def _submit(self, generation: Generation, *, is_warming: bool) -> _Text:
        now_ms = self._clock.monotonic_ms()
        if not self._texts:
            self._busy_since_ms = now_ms
        text = self._texts[generation.id] = _Text(is_warming=is_warming)
        self._idle.clear()
        row = Row(generation, now_ms, is_warming=is_warming)
        self._calls.put(lambda core: core.submit(row))
        return text

    def _deliver(self, told: Sequence[Told], is_failing: bool, is_broken: bool) -> None:
        """One step's news, in the loop."""
        self._is_failing = is_failing
        if is_broken:
            self._is_open = False
        for text_id, piece, finished in told:
            text = self._texts.get(text_id)
            if text is None:
                continue  # ended here already, by a stop that did not wait for the thread any longer
            text.add(piece)
            if finished is not None:
                self._end(text_id, finished)
        if is_broken:
            for text_id in list(self._texts):
                self._end(text_id, Finished(reason="error", text="", error="the engine has given up"))

    def _end(self, text_id: str, finished: Finished) -> None:
        self._texts.pop(text_id).end(finished)
        if not self._texts:
            self._idle.set()

    # --- on the thread ---

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[Core]) -> None:
        try:
            core = Core(
                self._model,
                rows=self._slots,
                prefix_cache_bytes=self._prefix_cache_bytes,
                clock=self._clock,
                is_public=self._is_public,
            )
        except Exception as error:
            _post(loop, _refuse, loaded, EngineError(f"the model cannot be loaded: {type(error).__name__}: {error}"))
            return
        _post(loop, _accept, loaded, core)
        is_stopping = is_broken = False
        while not is_broken and (core.is_busy or not is_stopping):
            is_stopping = self._take_calls(core, is_stopping) or is_stopping
            if is_stopping:
                core.cancel_all()
            if not core.is_busy:
                continue
            try:
                told = core.step()
            except Exception as error:
                told, is_broken = _failed(core, type(error).__name__)
            if told or core.failed_steps:
                _post(loop, self._deliver, told, core.failed_steps > 0, is_broken)
            told = []  # else the last words would stay for as long as there is nothing to do
        core.close()

    def _take_calls(self, core: Core, is_stopping: bool) -> bool:
        """Do what the loop asked for, waiting for something if there is nothing to do; True when it says stop."""
        is_waiting = not core.is_busy and not is_stopping
        while True:
            try:
                call = self._calls.get(block=is_waiting)
            except queue.Empty:
                return False
            if call is None:
                return True
            call(core)
            is_waiting = False


def _failed(core: Core, error: str) -> tuple[list[Told], bool]:
    """End all texts after a failed step; True if the engine cannot go on."""
    try:
        told = core.fail(f"a step failed: {error}")
    except Exception:
        return [], True
    return told, core.failed_steps >= MAX_FAILED_STEPS


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    # A loop that is closed has nobody left to be told.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def _accept(loaded: asyncio.Future[Core], core: Core) -> None:
    if not loaded.done():
        loaded.set_result(core)


def _refuse(loaded: asyncio.Future[Core], error: EngineError) -> None:
    if not loaded.done():
        loaded.set_exception(error)
