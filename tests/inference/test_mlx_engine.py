"""The mlx engine's half on the event loop: slots, failure told through progress, a thread that ends with its engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chatd.clock import SystemClock
from chatd.inference.engine import Delta, EngineError, Finished, Generation
from chatd.inference.mlx import MlxEngine
from chatd.inference.mlx_core import MAX_FAILED_STEPS
from chatd.inference.models import card
from chatd.inference.tiny import make

_ENDLESS = 'start: /[a-zA-Z ]{6000}/ "\\n"'
_PATIENCE_S = 60.0


class _Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.ms = 0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.ms / 1000, UTC)

    def monotonic_ms(self) -> int:
        return self.ms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("mlx_engine")
    make(folder, "1m")
    return folder


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
async def engine(folder: Path, clock: _Clock) -> AsyncIterator[MlxEngine]:
    engine = MlxEngine(folder, slots=3, reserved=1, prefix_cache_bytes=1 << 26, clock=clock)
    await engine.start()
    yield engine
    await engine.stop(0)


def _generation(name: str, **fields: Any) -> Generation:
    return Generation(id=name, **{"segments": ((2, *range(500, 530)),), "max_tokens": 4, "grammar": _ENDLESS, **fields})


async def _finish(engine: MlxEngine, generation: Generation) -> Finished:
    async with asyncio.timeout(_PATIENCE_S), aclosing(engine.generate(generation)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event
    raise AssertionError("no Finished")


def _break(engine: MlxEngine) -> None:
    """Every step from now on raises, as MLX does without memory."""

    def step() -> None:
        raise RuntimeError("out of memory")

    assert engine._core is not None
    engine._core.step = step  # type: ignore[method-assign, assignment]


def _mend(engine: MlxEngine) -> None:
    assert engine._core is not None
    del engine._core.step


async def test_mlx_info_is_of_the_model_that_was_loaded(engine: MlxEngine, folder: Path) -> None:
    """Card, room and stop ids come from the folder's files."""
    assert engine.info.model == card(folder)
    assert (engine.info.context_tokens, engine.info.stop_ids) == (32768, (1, 106))


async def test_mlx_urgent_text_is_written_while_all_open_slots_are_busy(engine: MlxEngine) -> None:
    """Both open slots write; the reserved one takes the urgent text and ends it before them."""
    async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
        streams = [engine.generate(_generation(f"open{n}", max_tokens=5000)) for n in range(2)]
        for stream in streams:
            assert isinstance(await anext(stream), Delta)
        assert (engine.capacity().free, engine.capacity().free_urgent) == (0, 1)
        urgent = group.create_task(_finish(engine, _generation("stat", is_urgent=True)))
        assert (await urgent).tokens_out == 4
        assert engine.capacity().active == 2
        for stream in streams:
            await stream.aclose()


async def test_mlx_ids_outside_of_the_vocabulary_are_refused(engine: MlxEngine) -> None:
    """They would read memory that is no token's; a prompt without tokens has nothing to go on from."""
    for segments in (((2, 1536),), ((-1, 2),), ((), ())):
        with pytest.raises(EngineError):
            await _finish(engine, _generation("t", segments=segments))
    assert engine.capacity().active == 0


async def test_mlx_failed_step_is_told_by_the_age_of_the_last_good_one(engine: MlxEngine, clock: _Clock) -> None:
    """The text ends with ``error``; the age grows though nothing runs, until a step succeeds."""
    assert (await _finish(engine, _generation("before"))).reason == "length"
    _break(engine)
    finished = await _finish(engine, _generation("broken"))
    assert (finished.reason, finished.error) == ("error", "a step failed: RuntimeError")
    clock.ms += 7_000
    assert engine.progress().age_ms == 7_000
    _mend(engine)
    assert (await _finish(engine, _generation("after"))).reason == "length"
    assert engine.progress().age_ms == 0


async def test_mlx_gives_up_after_failing_again_and_again(engine: MlxEngine, clock: _Clock) -> None:
    """The bound is reached: nothing more is taken, and the age goes on growing for the supervisor."""
    _break(engine)
    for n in range(MAX_FAILED_STEPS):
        assert (await _finish(engine, _generation(f"t{n}"))).reason == "error"
    with pytest.raises(EngineError):
        await _finish(engine, _generation("more"))
    with pytest.raises(EngineError):
        await engine.warm(((2, *range(500, 600)),))
    clock.ms += 9_000
    assert engine.progress().age_ms == 9_000


async def test_mlx_age_grows_while_a_step_hangs(engine: MlxEngine, clock: _Clock) -> None:
    """A step that does not end is told from an idle engine, and the text still ends once when the engine stops."""
    assert engine._core is not None
    hanging, release = threading.Event(), threading.Event()

    def step() -> list[Any]:
        hanging.set()
        release.wait(_PATIENCE_S)
        return []

    engine._core.step = step  # type: ignore[method-assign]
    task = asyncio.create_task(_finish(engine, _generation("t")))
    await asyncio.to_thread(hanging.wait, _PATIENCE_S)
    clock.ms += 21_000
    assert engine.progress().age_ms == 21_000
    _mend(engine)
    release.set()
    assert (await task).reason == "length"


async def test_mlx_warming_that_is_cancelled_leaves_the_engine_free(engine: MlxEngine) -> None:
    """The caller goes away in the middle; texts are written as before."""
    task = asyncio.create_task(engine.warm(((2, *range(300, 1300)),)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await _finish(engine, _generation("t"))).reason == "length"
    assert engine.capacity().active == 0


async def test_mlx_folder_without_a_model_is_an_engine_error(tmp_path: Path) -> None:
    """The reason is told, and no thread stays behind."""
    engine = MlxEngine(tmp_path, slots=1, reserved=0, prefix_cache_bytes=0, clock=SystemClock())
    with pytest.raises(EngineError, match="cannot be loaded"):
        await engine.start()
    with pytest.raises(EngineError):
        await _finish(engine, _generation("t"))
    await engine.stop(0)
    assert not any(thread.name == "mlx" for thread in threading.enumerate())


async def test_mlx_stop_ends_the_thread(folder: Path) -> None:
    """Stopped with a text running: Finished once, and the thread is gone when ``stop`` returns."""
    engine = MlxEngine(folder, slots=2, reserved=0, prefix_cache_bytes=0, clock=SystemClock())
    await engine.start()
    thread = engine._thread
    assert thread is not None
    stream = engine.generate(_generation("t", max_tokens=5000))
    assert isinstance(await anext(stream), Delta)
    await engine.stop(0)
    assert not thread.is_alive()
    ends = [event async for event in stream if isinstance(event, Finished)]
    assert [end.reason for end in ends] == ["cancelled"]
