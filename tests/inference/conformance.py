"""What every engine must do, as one suite: a test module gives it a ``Rig`` and gets all of these tests.

    from tests.inference.conformance import Conformance, Rig

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def rig() -> AsyncIterator[Rig]:
        ...

    class TestScripted(Conformance):
        pass

Engine, fixture and tests of the module share one event loop. No test asserts a time; how long a slot took to come free
is kept in ``Rig.freed_ms`` and printed at the end.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from typing import Any, Protocol

import msgspec
import pytest

from chatd import tasks
from chatd.clock import Clock, SystemClock
from chatd.inference.engine import Delta, Engine, EngineError, EngineFull, Finished, Generation
from chatd.inference.jobs import Piece
from chatd.inference.sections import parse

#: No wait of this suite is longer; a loaded two-core machine with a tiny model needs a fraction of it.
PATIENCE_S = 180.0
_POLL_S = 0.002

#: Seeds of prompts: plain hospital words, and a few that are more than one byte a letter.
_WORDS = re.findall(
    r"\S+",
    "patient was admitted with chest pain and fever troponin taken again in three hours potassium low dose given "
    "medição às três horas não há alergias coração pressão análises então ligação ¿señal? naïve Größe 血圧 🫀 – µg",
)

#: Marks of chat templates that must never come out as text.
SPECIAL_TEXTS = ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unused", "<|", "</s>")


class PromptTokens(Protocol):
    """The part of ``chatd.inference.tokens.Tokens`` that prompts are made with."""

    def prompt(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]: ...


class Rig(msgspec.Struct, kw_only=True):
    """What the suite needs of an engine.

    ``engine``: started, with at least 3 slots of which at least 1 is reserved; stopped by whoever made it. ``make``:
    a second one, started, of the same kind and slots, which the test stops. ``actions`` and ``grammar`` belong
    together. ``long_words``: a prompt whose prefill takes several steps. ``hold_tokens``: a free text of this many
    tokens is still being written when a test does something to it; the prompt and it must fit the engine.
    """

    engine: Engine
    make: Callable[[], Awaitable[Engine]]
    tokens: PromptTokens
    actions: tuple[str, ...]
    grammar: str
    clock: Clock = msgspec.field(default_factory=SystemClock)
    long_words: int = 800
    hold_tokens: int = 600
    replies: int = 50
    reply_tokens: int = 400
    freed_ms: dict[str, list[float]] = msgspec.field(default_factory=dict)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    _ids: int = 0

    def prompt(self, *parts: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """Segments of a prompt: one for each (number of words, seed); equal parts give equal segments."""
        pieces = []
        for words, seed in parts:
            dice = random.Random(seed)
            text = " ".join(dice.choice(_WORDS) for _ in range(words))
            pieces.append(Piece(name=f"part {seed}", text=f"{text}\n\n"))
        return self.tokens.prompt(pieces)

    def generation(self, *parts: tuple[int, int], **fields: Any) -> Generation:
        """A generation with an id of its own; free text of 24 tokens unless told otherwise."""
        self._ids += 1
        values = {"id": f"g{self._ids}", "max_tokens": 24, "segments": self.prompt(*(parts or ((30, self._ids),)))}
        return Generation(**{**values, **fields})

    def held(self, **fields: Any) -> Generation:
        """One that goes on until it is ended."""
        return self.generation(**{"max_tokens": self.hold_tokens, **fields})


async def collect(engine: Engine, generation: Generation) -> tuple[list[str], Finished]:
    """All of a generation: its deltas and its one Finished, checked as every generation is."""
    deltas: list[str] = []
    finished: Finished | None = None
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(generation)) as events:
        async for event in events:
            assert finished is None, "an event after Finished"
            if isinstance(event, Delta):
                assert event.text, "an empty delta"
                event.text.encode()  # a lone surrogate would be half a character
                deltas.append(event.text)
            else:
                finished = event
    assert finished is not None, "no Finished"
    assert "".join(deltas) == finished.text
    assert finished.tokens_out <= generation.max_tokens
    return deltas, finished


async def eventually(is_so: Callable[[], bool], what: str) -> None:
    """Wait until something is so, at most ``PATIENCE_S``."""
    give_up = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up, what
        await asyncio.sleep(_POLL_S)


async def free_again(rig: Rig, engine: Engine, stage: str) -> None:
    """Wait until no slot is taken, and note how long that took."""
    begun = time.monotonic()
    await eventually(lambda: engine.capacity().active == 0, f"slot not free after {stage}")
    rig.freed_ms.setdefault(stage, []).append((time.monotonic() - begun) * 1000)


class Running:
    """A generation whose consumer is a task of its own."""

    def __init__(self, engine: Engine, generation: Generation) -> None:
        self.generation = generation
        self.text_seen = asyncio.Event()
        self.task = asyncio.create_task(self._consume(engine))

    async def _consume(self, engine: Engine) -> Finished:
        finished: list[Finished] = []
        parts: list[str] = []
        async with aclosing(engine.generate(self.generation)) as events:
            async for event in events:
                assert not finished, "an event after Finished"
                if isinstance(event, Delta):
                    parts.append(event.text)
                    self.text_seen.set()
                else:
                    finished.append(event)
        assert len(finished) == 1
        assert "".join(parts) == finished[0].text
        return finished[0]

    async def writing(self) -> None:
        """Until its first text is there."""
        seen = asyncio.create_task(self.text_seen.wait())
        await asyncio.wait([seen, self.task], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        seen.cancel()
        assert self.text_seen.is_set(), "nothing was written"

    async def end(self) -> Finished:
        async with asyncio.timeout(PATIENCE_S):
            return await self.task


@pytest.mark.asyncio(loop_scope="module")
class Conformance:
    """The suite. A subclass stands in a module with the fixture ``rig`` (module scope and loop)."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _figures(cls, rig: Rig, request: pytest.FixtureRequest) -> Iterator[None]:
        yield
        capture = request.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            print()
            for stage, figures in sorted(rig.freed_ms.items()):
                shown = ", ".join(f"{value:.1f}" for value in figures)
                print(f"  {rig.engine.info.engine}: ms until the slot is free, {stage}: {shown}")
            for what, number in sorted(rig.counts.items()):
                print(f"  {rig.engine.info.engine}: {what}: {number}")

    # --- one Finished, whole text ---

    async def test_text_ends_with_one_finished_and_deltas_join_to_its_text(self, rig: Rig) -> None:
        """A short free text: deltas, then exactly one Finished with all of them."""
        deltas, finished = await collect(rig.engine, rig.generation())
        assert finished.reason in {"stop", "length"}
        assert deltas
        assert finished.tokens_out >= 1
        assert finished.ttft_ms is not None
        await free_again(rig, rig.engine, "the end")

    async def test_text_is_cut_at_max_tokens_with_length(self, rig: Rig) -> None:
        """One token is allowed under the grammar, which needs many: the end is ``length``, never ``stop``."""
        for max_tokens in (1, 2, 7):
            _, finished = await collect(
                rig.engine, rig.generation((20, max_tokens), grammar=rig.grammar, max_tokens=max_tokens)
            )
            assert (finished.reason, finished.tokens_out) == ("length", max_tokens)

    async def test_characters_are_never_split(self, rig: Rig) -> None:
        """Under the grammar no replacement character comes out, wherever the text is cut."""
        cuts = [
            rig.generation((20, seed), grammar=rig.grammar, max_tokens=9 + seed, temperature=1.0, seed=seed)
            for seed in range(12)
        ]
        slots = asyncio.Semaphore(rig.engine.capacity().free)

        async def run(generation: Generation) -> Finished:
            async with slots:
                return (await collect(rig.engine, generation))[1]

        for finished in await asyncio.gather(*map(run, cuts)):
            assert "�" not in finished.text

    async def test_equal_prompts_give_equal_texts_at_temperature_zero(self, rig: Rig) -> None:
        """The same prompt three times, once beside others, gives the same text."""
        _, first = await collect(rig.engine, rig.generation((60, 5), max_tokens=32))
        _, second = await collect(rig.engine, rig.generation((60, 5), max_tokens=32))
        assert (first.text, first.reason) == (second.text, second.reason)

    async def test_shared_beginning_changes_nothing_in_the_text(self, rig: Rig) -> None:
        """Greedy texts behind a shared, warmed beginning equal those of an engine that shares nothing."""
        shared = ((rig.long_words // 2, 71), (rig.long_words // 4, 72))
        wanted = [(shared, (25, seed)) for seed in (81, 82, 83)]
        alone = []
        for n, (head, tail) in enumerate(wanted):
            # Another salt each time, so that nothing of an earlier one may be used.
            generation = rig.generation(*head, tail, salt=f"alone {n}", grammar=rig.grammar, max_tokens=48)
            alone.append((await collect(rig.engine, generation))[1])
        warmed = await rig.engine.warm(rig.prompt(*shared, (1, 1))[:2], "hospital")
        assert warmed > 0
        hits = 0
        for (head, tail), expected in zip(wanted, alone, strict=True):
            generation = rig.generation(*head, tail, salt="hospital", grammar=rig.grammar, max_tokens=48)
            _, finished = await collect(rig.engine, generation)
            assert finished.text == expected.text
            assert finished.reason == expected.reason
            hits += finished.prefix_hit_tokens
        rig.counts["tokens of prompts that were at hand, three prompts"] = hits

    async def test_warming_twice_gives_the_same_tokens(self, rig: Rig) -> None:
        """The second call finds the work done and says the same number."""
        segments = rig.prompt((50, 91), (10, 92))[:1]
        assert await rig.engine.warm(segments, "hospital") == await rig.engine.warm(segments, "hospital")
        assert rig.engine.capacity().active == 0

    # --- ends that are not the model's ---

    async def test_deadline_ends_a_running_text(self, rig: Rig) -> None:
        """A text that would go on ends with ``deadline``, and one whose time is over never begins."""
        soon = rig.held(deadline_ms=rig.clock.monotonic_ms() + 60)
        _, finished = await collect(rig.engine, soon)
        assert finished.reason == "deadline"
        _, finished = await collect(rig.engine, rig.held(deadline_ms=rig.clock.monotonic_ms() - 1))
        assert (finished.reason, finished.text) == ("deadline", "")
        await free_again(rig, rig.engine, "deadline")

    async def test_cancel_before_the_first_event_frees_the_slot(self, rig: Rig) -> None:
        """Cancelled in the moment it was submitted: one Finished, ``cancelled``."""
        running = Running(rig.engine, rig.held())
        await asyncio.sleep(0)
        rig.engine.cancel(running.generation.id)
        begun = time.monotonic()
        finished = await running.end()
        assert finished.reason == "cancelled"
        rig.freed_ms.setdefault("cancel until Finished", []).append((time.monotonic() - begun) * 1000)
        await free_again(rig, rig.engine, "cancel before the first event")

    async def test_cancel_during_prefill_frees_the_slot(self, rig: Rig) -> None:
        """Cancelled while a long prompt is being taken in."""
        for seed in range(3):
            running = Running(rig.engine, rig.held(segments=rig.prompt((rig.long_words, 300 + seed))))
            await eventually(lambda: rig.engine.capacity().active == 1, "not begun")
            rig.engine.cancel(running.generation.id)
            begun = time.monotonic()
            assert (await running.end()).reason == "cancelled"
            rig.freed_ms.setdefault("cancel until Finished", []).append((time.monotonic() - begun) * 1000)
            await free_again(rig, rig.engine, "cancel during prefill")

    async def test_cancel_in_mid_stream_frees_the_slot_and_keeps_the_text(self, rig: Rig) -> None:
        """Cancelled after its first text: Finished holds what was written."""
        for _ in range(3):
            running = Running(rig.engine, rig.held())
            await running.writing()
            rig.engine.cancel(running.generation.id)
            begun = time.monotonic()
            finished = await running.end()
            assert finished.reason == "cancelled"
            assert finished.text
            rig.freed_ms.setdefault("cancel until Finished", []).append((time.monotonic() - begun) * 1000)
            await free_again(rig, rig.engine, "cancel in mid-stream")

    async def test_cancel_after_the_end_and_of_unknown_ids_is_harmless(self, rig: Rig) -> None:
        """Nothing happens to others, and the engine goes on."""
        done = rig.generation()
        await collect(rig.engine, done)
        running = Running(rig.engine, rig.generation(max_tokens=40))
        rig.engine.cancel(done.id)
        rig.engine.cancel(done.id)
        rig.engine.cancel("nobody")
        assert (await running.end()).reason in {"stop", "length"}
        await free_again(rig, rig.engine, "the end")

    async def test_consumer_that_closes_frees_the_slot(self, rig: Rig) -> None:
        """``aclose`` after the first event."""
        events = rig.engine.generate(rig.held())
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await anext(events), Delta)
            await events.aclose()
        await free_again(rig, rig.engine, "aclose")
        await collect(rig.engine, rig.generation())

    async def test_consumer_whose_task_is_cancelled_frees_the_slot(self, rig: Rig) -> None:
        """At once after submission, and in mid-stream."""
        running = Running(rig.engine, rig.held(segments=rig.prompt((rig.long_words, 400))))
        await eventually(lambda: rig.engine.capacity().active == 1, "not begun")
        await tasks.end([running.task])
        await free_again(rig, rig.engine, "consumer's task cancelled in prefill")
        running = Running(rig.engine, rig.held())
        await running.writing()
        await tasks.end([running.task])
        await free_again(rig, rig.engine, "consumer's task cancelled in mid-stream")
        await collect(rig.engine, rig.generation())

    async def test_generator_that_is_never_asked_takes_no_slot(self, rig: Rig) -> None:
        """Making and closing one submits nothing."""
        events = rig.engine.generate(rig.held())
        assert rig.engine.capacity().active == 0
        await events.aclose()
        assert rig.engine.capacity().active == 0

    # --- many at once ---

    async def test_slots_are_filled_refused_beyond_and_reserved_for_urgent(self, rig: Rig) -> None:
        """Ordinary texts take the free slots, urgent ones the reserved too; one more is EngineFull."""
        engine = rig.engine
        ordinary = [Running(engine, rig.held()) for _ in range(engine.capacity().free)]
        await eventually(lambda: engine.capacity().free == 0, "not begun")
        with pytest.raises(EngineFull):
            await collect(engine, rig.held())
        reserved = engine.capacity().free_urgent
        assert reserved == engine.capacity().reserved > 0
        urgent = [Running(engine, rig.held(is_urgent=True)) for _ in range(reserved)]
        await eventually(lambda: engine.capacity().free_urgent == 0, "urgent not begun")
        with pytest.raises(EngineFull):
            await collect(engine, rig.held(is_urgent=True))
        for running in ordinary + urgent:
            engine.cancel(running.generation.id)
        reasons = {(await running.end()).reason for running in ordinary + urgent}
        assert reasons == {"cancelled"}
        await free_again(rig, engine, "cancel of all slots")

    async def test_texts_side_by_side_end_each_once_and_apart(self, rig: Rig) -> None:
        """All free slots at once, one cancelled in the middle: the others end as they would alone."""
        count = rig.engine.capacity().free
        assert count >= 2
        runs = [Running(rig.engine, rig.generation((40, 500 + n), max_tokens=30 + n)) for n in range(count)]
        victim = Running(rig.engine, rig.held(is_urgent=True))
        await victim.writing()
        rig.engine.cancel(victim.generation.id)
        assert (await victim.end()).reason == "cancelled"
        assert {(await running.end()).reason for running in runs} <= {"stop", "length"}
        await free_again(rig, rig.engine, "the end")

    async def test_prompt_that_cannot_fit_is_refused_before_the_first_event(self, rig: Rig) -> None:
        """EngineError from the first ``anext``, and no slot is taken."""
        size = rig.engine.info.context_tokens
        segment = rig.prompt((30, 1))[0]
        segments = (segment, *[segment] * (size // len(segment) + 1))
        with pytest.raises(EngineError):
            await collect(rig.engine, rig.generation(segments=segments))
        assert rig.engine.capacity().active == 0

    # --- what it says of itself ---

    async def test_progress_grows_while_running_and_only_then(self, rig: Rig) -> None:
        """``steps`` grows with a text and stands still without one; ``age_ms`` is 0 when nothing runs."""
        before = rig.engine.progress().steps
        running = Running(rig.engine, rig.held())
        await running.writing()
        middle = rig.engine.progress().steps
        assert middle > before
        await eventually(lambda: rig.engine.progress().steps > middle, "no steps")
        rig.engine.cancel(running.generation.id)
        await running.end()
        await free_again(rig, rig.engine, "cancel in mid-stream")
        assert rig.engine.progress().age_ms == 0

    async def test_info_names_the_model(self, rig: Rig) -> None:
        """Engine, model id, room and stop ids are told."""
        info = rig.engine.info
        assert info.engine
        assert info.model.id
        assert info.context_tokens > 0
        assert info.stop_ids

    # --- structure ---

    async def test_replies_under_the_grammar_are_valid_sections_with_catalogue_ids_only(self, rig: Rig) -> None:
        """Many random replies: each parses, complete ones are complete, and no id is outside the grammar."""
        slots = asyncio.Semaphore(rig.engine.capacity().free)

        async def run(seed: int) -> Finished:
            generation = rig.generation(
                (25, 600 + seed), grammar=rig.grammar, max_tokens=rig.reply_tokens, temperature=1.0, seed=seed
            )
            async with slots:
                return (await collect(rig.engine, generation))[1]

        replies = await asyncio.gather(*map(run, range(rig.replies)))
        ended = 0
        for reply in replies:
            assert reply.reason in {"stop", "length"}, reply.error
            sections = parse(reply.text, rig.actions)
            assert sections.headline
            assert set(sections.actions) <= set(rig.actions)
            assert not any(text in reply.text for text in SPECIAL_TEXTS)
            if reply.reason == "stop":
                ended += 1
                assert sections.is_complete
                last = reply.text.rstrip("\n").rsplit("\n", 1)[1]
                assert last.startswith("Actions: ")
                ids = last.removeprefix("Actions: ").split(", ")
                assert ids == ["none"] or set(ids) <= set(rig.actions)
        rig.counts[f"of {rig.replies} replies came to their end"] = ended

    # --- the engine's own end ---

    async def test_stop_ends_each_running_text_once(self, rig: Rig) -> None:
        """Stopped without a drain: every running text gets its Finished; afterwards nothing is taken; twice is safe."""
        engine = await rig.make()
        running = [Running(engine, rig.held()) for _ in range(2)]
        await running[0].writing()
        await engine.stop(0)
        assert {(await one.end()).reason for one in running} == {"cancelled"}
        with pytest.raises(EngineError):
            await collect(engine, rig.generation())
        await engine.stop(0)

    async def test_stop_with_drain_lets_running_texts_end(self, rig: Rig) -> None:
        """A short text ends by itself within the drain, and a new one is refused meanwhile."""
        engine = await rig.make()
        running = Running(engine, rig.generation(max_tokens=30))
        await running.writing()
        stopping = asyncio.create_task(engine.stop(PATIENCE_S))
        await asyncio.sleep(0)
        with pytest.raises(EngineError):
            await collect(engine, rig.generation())
        assert (await running.end()).reason in {"stop", "length"}
        async with asyncio.timeout(PATIENCE_S):
            await stopping
