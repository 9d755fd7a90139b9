"""The mlx engine's half on its thread, step by step: sharing, admission, failure, masks. mlx-lm and a tiny model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chatd.inference import mlx_core
from chatd.inference.engine import Finished, Generation
from chatd.inference.mlx_batch import PREFILL_STEP_TOKENS
from chatd.inference.mlx_core import Core, Row
from chatd.inference.mlx_grammar import GrammarError, Position, Vocabulary
from chatd.inference.tiny import make
from chatd.inference.tokens import Tokens

pytestmark = pytest.mark.inference

_WINDOW = 512
_ENDLESS = 'start: /[a-zA-Z ]{6000}/ "\\n"'
_CHOOSING = 'start: "Actions: " ("order_ecg" | "notify_icu" | "none") "\\n"'
_THINKING = (100, 101)


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
    folder: Path = tmp_path_factory.mktemp("mlx_core")
    make(folder, "1m")
    return folder


def _core(folder: Path, *, cache_bytes: int = 1 << 28, rows: int = 6, is_public: bool = False) -> Core:
    return Core(folder, rows=rows, prefix_cache_bytes=cache_bytes, clock=_Clock(), is_public=is_public)


@pytest.fixture(scope="module")
def shared_core(folder: Path) -> Core:
    """For tests that leave it as it was; what is kept is told apart by the salt."""
    return _core(folder)


def _ids(count: int, seed: int) -> tuple[int, ...]:
    dice = random.Random(seed)
    return tuple(dice.randrange(400, 1400) for _ in range(count))


def _generation(name: str, *segments: Sequence[int], **fields: Any) -> Generation:
    return Generation(
        id=name, **{"max_tokens": 8, "grammar": _ENDLESS, "segments": tuple(map(tuple, segments)), **fields}
    )


class _Heard:
    """What a core has told, by text; ``order`` is the order in which the texts began."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.text: dict[str, str] = {}
        self.pieces: dict[str, int] = {}
        self.finished: dict[str, Finished] = {}
        self.order: list[str] = []

    def step(self) -> None:
        self.hear(self.core.step())

    def hear(self, told: Sequence[mlx_core.Told]) -> None:
        for name, text, finished in told:
            assert name not in self.finished, "something after Finished"
            if text and name not in self.order:
                self.order.append(name)
            self.text[name] = self.text.get(name, "") + text
            self.pieces[name] = self.pieces.get(name, 0) + bool(text)
            if finished is not None:
                self.finished[name] = finished

    def to_the_end(self) -> _Heard:
        while self.core.is_busy:
            self.step()
        return self

    def until_begun(self, name: str) -> None:
        while name not in self.order:
            self.step()


def _run(core: Core, *generations: Generation) -> _Heard:
    for generation in generations:
        core.submit(Row(generation, 0))
    return _Heard(core).to_the_end()


def _warm(core: Core, *segments: Sequence[int], salt: str) -> int:
    core.submit(Row(_generation("warm", *segments, salt=salt), 0, is_warming=True))
    return _Heard(core).to_the_end().finished["warm"].prefix_hit_tokens


# --- shared beginnings ---


def test_shared_beginning_gives_the_same_tokens_beyond_the_sliding_window(folder: Path, shared_core: Core) -> None:
    """Texts behind hospital, department and patient, longer than the window: as by an engine that keeps nothing."""
    hospital, department = (2, *_ids(300, 1)), _ids(330, 2)
    assert len(hospital) + len(department) > _WINDOW
    tails = [(_ids(70, 3), _ids(20, 4)), (_ids(70, 3), _ids(33, 5))]
    wanted = [
        _generation(f"t{n}", hospital, department, *tail, salt="window", max_tokens=24) for n, tail in enumerate(tails)
    ]
    plain = _core(folder, cache_bytes=0)
    alone = [_run(plain, generation) for generation in wanted]
    assert {heard.finished[f"t{n}"].prefix_hit_tokens for n, heard in enumerate(alone)} == {0}
    together = _run(shared_core, *wanted)
    for n, heard in enumerate(alone):
        assert together.text[f"t{n}"] == heard.text[f"t{n}"]
        assert len(heard.text[f"t{n}"]) >= 24
    assert sorted(finished.prefix_hit_tokens for finished in together.finished.values()) == [0, 701]


def test_missing_beginning_is_built_once_while_others_wait(shared_core: Core) -> None:
    """Four cold texts at once, one of them urgent: the shared part is worked on one time."""
    hospital = (2, *_ids(300, 11))
    before = shared_core.prefill_tokens
    generations = [
        _generation(f"t{n}", hospital, _ids(20, 20 + n), salt="once", is_urgent=n == 3, max_tokens=2) for n in range(4)
    ]
    for generation in generations[:3]:
        shared_core.submit(Row(generation, 0))
    heard = _Heard(shared_core)
    heard.step()
    shared_core.submit(Row(generations[3], 0))
    heard.to_the_end()
    # Each prompt's last token is worked on with the first token of its text.
    assert shared_core.prefill_tokens - before == len(hospital) + 4 * 19
    assert sorted(finished.prefix_hit_tokens for finished in heard.finished.values()) == [0, 301, 301, 301]


def test_cancelled_builder_leaves_the_work_to_the_next(shared_core: Core) -> None:
    """The one that was building goes away: another builds, and its text comes."""
    hospital = (2, *_ids(300, 31))
    for name in ("first", "second"):
        shared_core.submit(Row(_generation(name, hospital, _ids(9, 32), salt="left"), 0))
    heard = _Heard(shared_core)
    heard.step()
    shared_core.cancel("first")
    heard.to_the_end()
    assert heard.finished["first"].reason == "cancelled"
    assert (heard.finished["second"].reason, heard.finished["second"].prefix_hit_tokens) == ("length", 0)


def test_warmed_beginning_is_hit_and_warming_again_does_no_work(shared_core: Core) -> None:
    """Two boundaries made ready ahead; a second time not a token is worked on."""
    segments = ((2, *_ids(90, 41)), _ids(80, 42))
    assert _warm(shared_core, *segments, salt="warm") == 171
    before = shared_core.prefill_tokens
    assert _warm(shared_core, *segments, salt="warm") == 171
    assert shared_core.prefill_tokens == before
    heard = _run(shared_core, _generation("t", *segments, _ids(9, 43), salt="warm", max_tokens=1))
    assert heard.finished["t"].prefix_hit_tokens == 171
    heard = _run(shared_core, _generation("t", *segments, _ids(9, 43), salt="other hospital", max_tokens=1))
    assert heard.finished["t"].prefix_hit_tokens == 0


def test_full_store_keeps_the_widest_and_texts_stay_the_same(folder: Path) -> None:
    """Room for one beginning alone: patients come and go, the hospital stays, the text is that of an empty store."""
    hospital = (2, *_ids(100, 51))
    probe = _core(folder)
    _warm(probe, hospital, salt="")
    core = _core(folder, cache_bytes=probe._store.size_bytes + 1000)
    texts = []
    for seed in (52, 53, 52):
        heard = _run(core, _generation("t", hospital, _ids(70, seed), _ids(9, 54)))
        texts.append((heard.finished["t"].prefix_hit_tokens, heard.text["t"]))
    assert [hit for hit, _ in texts] == [0, 101, 101]
    assert texts[0][1] == texts[2][1] != texts[1][1]


# --- who is taken in when ---


def test_long_prompt_does_not_stop_running_texts(shared_core: Core) -> None:
    """While a prompt of several steps is taken in, each step gives the running text a token."""
    heard = _Heard(shared_core)
    shared_core.submit(Row(_generation("running", (2, *_ids(9, 61)), max_tokens=200), 0))
    heard.until_begun("running")
    before, steps = heard.pieces["running"], shared_core.steps
    shared_core.submit(Row(_generation("long", (2, *_ids(3 * PREFILL_STEP_TOKENS, 62)), max_tokens=2), 0))
    heard.until_begun("long")
    assert shared_core.steps - steps >= 4
    assert heard.pieces["running"] - before == shared_core.steps - steps
    shared_core.cancel("running")
    heard.to_the_end()


def test_urgent_text_goes_before_a_long_prompt_that_is_half_taken_in(folder: Path, shared_core: Core) -> None:
    """The long one is put aside at the next step and goes on where it was; its text is what it would have been."""
    long = _generation("long", (2, *_ids(2 * PREFILL_STEP_TOKENS, 71)), max_tokens=6)
    alone = _run(shared_core, long)
    heard = _Heard(shared_core)
    shared_core.submit(Row(long, 0))
    heard.step()
    before = shared_core.prefill_tokens
    shared_core.submit(Row(_generation("stat", (2, *_ids(30, 72)), is_urgent=True, max_tokens=6), 0))
    heard.to_the_end()
    assert heard.order == ["stat", "long"]
    assert heard.text["long"] == alone.text["long"]
    assert shared_core.prefill_tokens - before == PREFILL_STEP_TOKENS + 30


def test_short_prompts_pass_a_long_one_a_bounded_number_of_times(shared_core: Core) -> None:
    """The least work goes first, and no prompt is passed over for ever."""
    heard = _Heard(shared_core)
    shared_core.submit(Row(_generation("long", (2, *_ids(PREFILL_STEP_TOKENS, 81)), max_tokens=1), 0))
    for n in range(12):
        shared_core.submit(Row(_generation(f"short{n}", (2, *_ids(5, 82 + n)), max_tokens=1), 0))
    heard.to_the_end()
    assert heard.order.index("long") == mlx_core._MAX_PASSED
    assert len(heard.finished) == 13


# --- ends ---


def test_deadline_is_checked_at_each_step(folder: Path) -> None:
    """Text that was written stays; nothing comes after; a text whose time was over never begins."""
    clock = _Clock()
    core = Core(folder, rows=2, prefix_cache_bytes=0, clock=clock)
    heard = _Heard(core)
    core.submit(Row(_generation("soon", (2, *_ids(9, 91)), max_tokens=50, deadline_ms=100), 0))
    heard.until_begun("soon")
    clock.ms = 100
    core.submit(Row(_generation("late", (2, *_ids(9, 92)), deadline_ms=100), 100))
    heard.step()
    assert {name: finished.reason for name, finished in heard.finished.items()} == {
        "soon": "deadline",
        "late": "deadline",
    }
    assert heard.text["soon"]
    assert not heard.text["late"]
    assert not core.is_busy


def test_grammar_that_does_not_compile_ends_its_text_alone(shared_core: Core) -> None:
    """One error without any of the grammar in it; the other text is written."""
    heard = _run(
        shared_core,
        _generation("bad", (2, *_ids(9, 95)), grammar="start: secret %"),
        _generation("good", (2, *_ids(9, 96))),
    )
    assert (heard.finished["bad"].reason, heard.finished["good"].reason) == ("error", "length")
    assert "secret" not in heard.finished["bad"].error


def test_failed_step_ends_every_text_and_the_next_one_is_written(folder: Path) -> None:
    """MLX raises in the middle: one error each, and caches are begun anew."""
    core = _core(folder)
    wanted = _run(core, _generation("t", (2, *_ids(80, 97)), _ids(9, 98)))
    heard = _Heard(core)
    for name in ("running", "waiting"):
        core.submit(Row(_generation(name, (2, *_ids(80, 97)), _ids(9, 98), max_tokens=50), 0))
    heard.until_begun("running")
    core._generator.next = _raise
    with pytest.raises(RuntimeError):
        core.step()
    heard.hear(core.fail("a step failed: RuntimeError"))
    assert [finished.reason for finished in heard.finished.values()] == ["error", "error"]
    assert not core.is_busy
    again = _run(core, _generation("t", (2, *_ids(80, 97)), _ids(9, 98)))
    assert again.text == wanted.text
    assert again.finished["t"].prefix_hit_tokens == 0


def _raise() -> None:
    raise RuntimeError("out of memory")


# --- what is written ---


def test_private_batch_writes_what_the_public_interface_writes(folder: Path) -> None:
    """Greedy and sampled texts, with and without a grammar, side by side: the same tokens and log-probabilities."""
    generations = [
        _generation("greedy", (2, *_ids(30, 101)), max_tokens=20),
        _generation("choosing", (2, *_ids(30, 102)), grammar=_CHOOSING, max_tokens=20),
        _generation("free", (2, *_ids(30, 103)), grammar=None, max_tokens=20),
        _generation("sampled", (2, *_ids(30, 104)), temperature=1.0, seed=7, max_tokens=20),
        _generation("sampled free", (2, *_ids(30, 105)), grammar=None, temperature=0.7, seed=8, max_tokens=20),
    ]
    private, public = (_run(_core(folder, is_public=is_public), *generations) for is_public in (False, True))
    assert private.text == public.text
    for name, finished in private.finished.items():
        other = public.finished[name]
        assert (finished.reason, finished.tokens_out) == (other.reason, other.tokens_out)
        assert finished.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-4)
    assert private.text["choosing"] in {f"Actions: {action}\n" for action in ("order_ecg", "notify_icu", "none")}


def test_equal_seeds_give_equal_texts_whoever_else_runs(shared_core: Core) -> None:
    """A sampled text alone and beside others; another seed gives another text."""
    fields: dict[str, Any] = {"temperature": 1.0, "max_tokens": 16}
    alone = _run(shared_core, _generation("a", (2, *_ids(30, 111)), seed=1, **fields))
    beside = _run(
        shared_core,
        _generation("b", (2, *_ids(40, 112)), seed=1, **fields),
        _generation("a", (2, *_ids(30, 111)), seed=1, **fields),
    )
    other = _run(shared_core, _generation("a", (2, *_ids(30, 111)), seed=2, **fields))
    assert alone.text["a"] == beside.text["a"] != other.text["a"]


def test_choice_logprobs_are_of_choices_alone_and_bounded(shared_core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced tokens are no choice; each number is a log-probability among what was allowed; no more than the bound."""
    heard = _run(shared_core, _generation("t", (2, *_ids(30, 121)), grammar=_CHOOSING, max_tokens=30))
    finished = heard.finished["t"]
    assert finished.reason == "stop"
    assert 1 <= len(finished.choice_logprobs) < finished.tokens_out
    assert all(-50 < value <= 1e-6 for value in finished.choice_logprobs)
    monkeypatch.setattr(mlx_core, "MAX_CHOICE_LOGPROBS", 3)
    heard = _run(shared_core, _generation("t", (2, *_ids(30, 122)), max_tokens=9))
    assert len(heard.finished["t"].choice_logprobs) == 3
    heard = _run(shared_core, _generation("t", (2, *_ids(30, 122)), grammar=None, max_tokens=3))
    assert heard.finished["t"].choice_logprobs == ()


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    tokens = Tokens.load(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Vocabulary(text, 1536, tokens.stop_ids, tokens.special_ids)


def _allowed(vocabulary: Vocabulary, position: Position, token: int = 0) -> set[int]:
    masked = vocabulary.mask(mx.zeros((1, vocabulary.size)), (position,), (token,))
    return set(np.nonzero(np.isfinite(np.array(masked)[0]))[0].tolist())


def test_mask_never_lets_thinking_or_turn_tokens_through(vocabulary: Vocabulary, folder: Path) -> None:
    """Free or under a grammar that allows any text, of the special ids only those that end it are possible."""
    tokens = Tokens.load(folder)
    free = _allowed(vocabulary, Position(vocabulary, None))
    assert free & tokens.special_ids == set(tokens.stop_ids) == {1, 106}
    assert len(free) == vocabulary.size - len(tokens.special_ids) + len(tokens.stop_ids)
    under = _allowed(vocabulary, Position(vocabulary, "start: /(.|\\n)*/"))
    assert under & tokens.special_ids <= set(tokens.stop_ids)
    assert not under & set(_THINKING)


def test_mask_at_the_grammars_end_allows_only_the_end(vocabulary: Vocabulary, folder: Path) -> None:
    """Behind the last letter nothing but a stop id may follow, and before the first none may."""
    tokens = Tokens.load(folder)
    position = Position(vocabulary, 'start: "ok"')
    allowed = _allowed(vocabulary, position)
    assert not allowed & set(tokens.stop_ids)
    for token in tokens.encode("ok"):
        assert token in allowed
        allowed = _allowed(vocabulary, position, token)
    assert allowed == set(tokens.stop_ids)
    assert not position.error


def test_mask_of_a_text_that_left_its_grammar_ends_it(vocabulary: Vocabulary, folder: Path) -> None:
    """A token that was not allowed: an error, and only the end may follow; other rows are untouched."""
    position = Position(vocabulary, 'start: "ok"')
    _allowed(vocabulary, position)
    assert _allowed(vocabulary, position, Tokens.load(folder).encode("x")[0]) == {1, 106}
    assert position.error
    with pytest.raises(GrammarError):
        Position(vocabulary, "start: %")


def test_mask_of_a_batch_is_each_rows_own(vocabulary: Vocabulary) -> None:
    """Two grammars and a free row at once give what each gives alone; padding beyond the tokenizer stays out."""
    grammars = ['start: "a" | "b"', None, "start: /[0-9]+/"]
    alone = [_allowed(vocabulary, Position(vocabulary, grammar)) for grammar in grammars]
    positions = [Position(vocabulary, grammar) for grammar in grammars]
    masked = np.array(vocabulary.mask(mx.zeros((3, vocabulary.size)), positions, (0, 0, 0)))
    for row, allowed in enumerate(alone):
        assert set(np.nonzero(masked[row] > -math.inf)[0].tolist()) == allowed
    assert list(positions[0].choices) == [True]
