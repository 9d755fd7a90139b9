"""What only a real server shows: that closing stops it, that beginnings are found again, and whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from chatd.inference.engine import Delta, EngineError, Finished, Generation
from chatd.inference.jobs import Piece
from chatd.inference.sections import grammar, parse
from chatd.inference.tokens import Tokens
from chatd.inference.vllm import VllmEngine
from tests.vllm.server import MODEL, SLOTS, running_requests

pytestmark = pytest.mark.vllm

PATIENCE_S = 240.0
ACTIONS = ("order_ecg", "notify_icu", "order_troponin", "repeat_lactate")


@pytest.fixture
def tokens(model_folder: Path) -> Tokens:
    return Tokens.load(model_folder)


@pytest.fixture
async def engine(url: str, tokens: Tokens) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(url, tokens, MODEL, slots=SLOTS, reserved=2)
    await engine.start()
    yield engine
    await engine.stop(0)


def _generation(tokens: Tokens, name: str, text: str, **fields: object) -> Generation:
    pieces = [Piece(name="shared", text=text), Piece(name="question", text="What now?\n\n")]
    values: dict[str, object] = {"id": name, "segments": tokens.prompt(pieces), "max_tokens": 16, **fields}
    return Generation(**values)  # type: ignore[arg-type]


async def _finish(engine: VllmEngine, generation: Generation) -> Finished:
    ends = []
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(generation)) as events:
        ends = [event async for event in events if isinstance(event, Finished)]
    assert len(ends) == 1
    return ends[0]


async def test_cancelled_text_leaves_the_server_with_nothing_to_do(
    engine: VllmEngine, tokens: Tokens, url: str
) -> None:
    """Eight long texts are under way, all are cancelled: the server's own count of running requests goes to zero."""
    texts = [engine.generate(_generation(tokens, f"c{n}", "lactate high\n\n", max_tokens=4000)) for n in range(8)]
    async with asyncio.timeout(PATIENCE_S):
        for text in texts:
            assert isinstance(await anext(text), Delta)
        assert await running_requests(url) > 0
        for n in range(8):
            engine.cancel(f"c{n}")
        for text in texts:
            rest = [event async for event in text]
            assert isinstance(rest[-1], Finished)
            assert rest[-1].reason == "cancelled"
        while await running_requests(url) > 0:  # noqa: ASYNC110 - a number on the server's page
            await asyncio.sleep(0.02)


async def test_warmed_beginning_is_found_again_under_its_salt_only(engine: VllmEngine, tokens: Tokens) -> None:
    """Most of a long beginning was at hand after warming; for another hospital nothing of it is."""
    text = " ".join(f"potassium {n} high, creatinine {n + 1} rising." for n in range(120)) + "\n\n"
    warmed = await engine.warm(_generation(tokens, "w", text).segments[:1], "hospital")
    assert warmed > 1000
    ours = await _finish(engine, _generation(tokens, "ours", text, salt="hospital"))
    theirs = await _finish(engine, _generation(tokens, "theirs", text, salt="another"))
    assert warmed * 0.8 < ours.prefix_hit_tokens <= warmed
    assert theirs.prefix_hit_tokens == 0
    assert ours.text == theirs.text
    assert ours.tokens_in == theirs.tokens_in == sum(map(len, _generation(tokens, "ours", text).segments))


async def test_twenty_random_answers_are_sections_with_catalogue_ids_only(engine: VllmEngine, tokens: Tokens) -> None:
    """A random model under the grammar, at temperature 1: every text parses, whole ones completely."""
    room = asyncio.Semaphore(engine.capacity().free)

    async def write(seed: int) -> Finished:
        fields = {"grammar": grammar(ACTIONS), "max_tokens": 1200, "temperature": 1.0, "seed": seed}
        async with room:
            return await _finish(engine, _generation(tokens, f"s{seed}", "troponin rising\n\n", **fields))

    answers = await asyncio.gather(*map(write, range(20)))
    assert any(finished.reason == "stop" for finished in answers)
    for finished in answers:
        assert finished.reason in {"stop", "length"}, finished.error
        sections = parse(finished.text, ACTIONS)
        assert sections.headline
        assert set(sections.actions) <= set(ACTIONS)
        assert sections.is_complete or finished.reason == "length"
        assert "<unused" not in finished.text
        assert finished.choice_logprobs
        assert max(finished.choice_logprobs) < 0


async def test_grammar_that_is_none_ends_in_an_error_without_its_text(engine: VllmEngine, tokens: Tokens) -> None:
    """The server answers with a frame without choices; the engine goes on."""
    finished = await _finish(engine, _generation(tokens, "bad", "x\n\n", grammar="start: nowhere_to_be_found"))
    assert (finished.reason, finished.text) == ("error", "")
    assert finished.error == "BadRequestError 400"
    assert (await _finish(engine, _generation(tokens, "good", "x\n\n"))).reason in {"stop", "length"}


async def test_model_that_is_not_served_is_refused_at_the_start(url: str, tokens: Tokens) -> None:
    """By name, with the names that are."""
    with pytest.raises(EngineError, match=f"serves {MODEL}"):
        await VllmEngine(url, tokens, "medgemma").start()
