"""What the scripted engine does beyond the promises of the seam: its texts, its pace, its faults."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.inference import tiny
from chatd.inference.engine import Delta, Finished, Generation
from chatd.inference.jobs import Piece
from chatd.inference.scripted import (
    Fault,
    Script,
    ScriptedEngine,
    ScriptedTokens,
    prompt_text,
    write_sections,
)
from chatd.inference.sections import grammar, parse

ACTIONS = ("order_ecg", "notify_icu", "order_troponin", "consult_pharmacy")
TOKENS = ScriptedTokens()
PATIENCE_S = 20.0


class StandingClock:
    """Time that moves only when the engine waits."""

    def __init__(self) -> None:
        self.ms = 1_000

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.ms / 1000, UTC)

    def monotonic_ms(self) -> int:
        return self.ms

    async def pause(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        await asyncio.sleep(0)


def generation(text: str = "Why?", **fields: Any) -> Generation:
    segments = TOKENS.prompt((Piece(name="question", text=text),))
    return Generation(**{"id": "g", "segments": segments, "grammar": grammar(ACTIONS), "max_tokens": 400, **fields})


async def run(engine: ScriptedEngine, one: Generation) -> tuple[list[Delta], Finished]:
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(one)) as events:
        *deltas, finished = [event async for event in events]
    assert isinstance(finished, Finished)
    return [event for event in deltas if isinstance(event, Delta)], finished


@pytest.fixture
async def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
async def engine(clock: StandingClock) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(slots=3, reserved=1, clock=clock, step_ms=10, pause=clock.pause)
    await engine.start()
    yield engine
    await engine.stop(0)


async def test_each_token_takes_one_step_of_the_given_length(engine: ScriptedEngine) -> None:
    """One step for the prompt, one for each token, on the engine's own clock; the end is seen with one more."""
    _, finished = await run(engine, generation(max_tokens=7))
    assert (finished.reason, finished.tokens_out) == ("length", 7)
    assert finished.ttft_ms == 20
    assert finished.generation_ms == 90
    assert engine.progress().steps == 9


async def test_deadline_is_met_to_the_step(engine: ScriptedEngine, clock: StandingClock) -> None:
    """The text ends at the first step at or after its deadline."""
    _, finished = await run(engine, generation(deadline_ms=clock.ms + 55))
    assert finished.reason == "deadline"
    assert finished.generation_ms == 60
    assert finished.tokens_out == 4


async def test_hung_engine_makes_no_step_and_grows_old(clock: StandingClock) -> None:
    """No token after the fault and no cancel either; ``stop`` still ends the text once."""
    script = Script(write=write_sections, faults=(Fault(step=5, kind="hang"),))
    engine = ScriptedEngine(script, clock=clock, step_ms=10, pause=clock.pause)
    await engine.start()
    running = asyncio.create_task(run(engine, generation()))
    async with asyncio.timeout(PATIENCE_S):
        while engine.progress().steps < 4:  # noqa: ASYNC110 - looks at the engine
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    engine.cancel("g")
    clock.ms += 5_000
    assert engine.progress().steps == 4
    assert engine.progress().age_ms >= 5_000
    assert not running.done()
    await engine.stop(0)
    assert (await running)[1].reason == "cancelled"


async def test_failing_step_ends_all_texts_with_error_and_the_engine_goes_on(clock: StandingClock) -> None:
    """The next text is written as if nothing had been."""
    script = Script(write=write_sections, faults=(Fault(step=5, kind="fail"),))
    engine = ScriptedEngine(script, clock=clock, step_ms=10, pause=clock.pause)
    await engine.start()
    ends = await asyncio.gather(run(engine, generation(id="a")), run(engine, generation(id="b")))
    assert [finished.reason for _, finished in ends] == ["error", "error"]
    assert all(finished.error for _, finished in ends)
    assert (await run(engine, generation(id="c")))[1].reason == "stop"
    await engine.stop(0)


def test_crash_kills_the_process() -> None:
    """As a fault of a library does it: SIGKILL, nothing is said."""
    code = """
import asyncio
from chatd.inference.engine import Generation
from chatd.inference.scripted import Fault, Script, ScriptedEngine, write_sections
async def main():
    engine = ScriptedEngine(Script(write=write_sections, faults=(Fault.parse("crash:3"),)))
    await engine.start()
    async for _ in engine.generate(Generation(id="g", segments=((1,),), max_tokens=9)):
        pass
asyncio.run(main())
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("text", ["", "hang", "hang:", "hang:0x", "sleep:3", "hang:1:2"])
def test_fault_that_is_none_is_refused(text: str) -> None:
    """A misspelt fault must not be a run without one."""
    with pytest.raises(ValueError, match="a fault is"):
        Fault.parse(text)


@given(st.text(max_size=60), st.integers(0, 9))
def test_text_is_whole_fixed_by_the_prompt_and_holds_no_number(question: str, seed: int) -> None:
    """Complete sections with the grammar's ids; nothing that a check could take for a fact."""
    one = generation(question, temperature=0.5, seed=seed)
    text = write_sections(one)
    assert text == write_sections(one)
    sections = parse(text, ACTIONS)
    assert sections.is_complete
    assert set(sections.actions) <= set(ACTIONS)
    assert not any(letter.isdigit() for letter in text)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_bytes_are_ids_and_no_text_becomes_a_special_one(text: str) -> None:
    """The turn's marks are the only special ids, and a script that is told to can read the text again."""
    segments = TOKENS.prompt((Piece(name="a", text=text), Piece(name="b", text="end")))
    specials = [token for token in itertools.chain(*segments) if token in TOKENS.special_ids]
    assert specials == [256, 257, 258, 257]
    assert text in prompt_text(Generation(id="g", segments=segments))


async def test_text_is_accepted_by_the_grammar_itself(tmp_path: Path) -> None:
    """llguidance, with the tokenizer of a small model, takes every one of the fixed texts to its end."""
    from llguidance import LLMatcher, LLTokenizer

    from chatd.inference.tokens import Tokens

    tiny.make(tmp_path)
    tokens = Tokens.load(tmp_path)
    vocabulary = LLTokenizer((tmp_path / "tokenizer.json").read_text(), eos_token=list(tokens.stop_ids))
    for n in range(40):
        text = write_sections(generation(f"{n}"))
        matcher = LLMatcher(vocabulary, grammar(ACTIONS))
        assert matcher.consume_tokens(list(tokens.encode(text))), text
        assert matcher.is_accepting(), text
