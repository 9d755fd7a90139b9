"""Prompts of the injection corpus through the real queue and worker into a running engine, and its texts to the answer.

``test_injection`` looks at a thousand prompts, from the chart to the ids. Here prompts of the same corpus go the whole
way: composed and queued as the gateway does it, claimed and tokenized by the worker, written by mlx-lm under the
department's grammar, read, reviewed and made an answer. One in ten of the texts is written to its end, where the
actions stand; the others are cut after a few words of the headline. A prompt costs a CPU more than a second, so 120
of them are run unless ``CHATD_INJECTION_PROMPTS`` says how many; all thousand take 23 minutes of one core.

What that shows: the ids that reach a running engine hold nothing special but the template's own, and whatever
probabilities come of such a prompt, every text has the form, with ids of the catalogue. What it does not show: how a
model that understands the orders behaves. This one is random and obeys nobody; what an obeying one would write is
made up in ``test_injection`` and put before the same review.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chatd import tasks
from chatd.clock import SystemClock, epoch_ms
from chatd.inference import tiny
from chatd.inference.engine import Delta, Finished, Generation
from chatd.inference.jobs import Outcome, Piece
from chatd.inference.limits import limits_of
from chatd.inference.mlx import MlxEngine
from chatd.inference.queue import JobQueue
from chatd.inference.sections import SECTIONS, grammar, parse
from chatd.inference.tokens import Tokens
from chatd.inference.worker import Worker
from chatd.replies.answer import proposals
from chatd.replies.facts import FactsResult, build
from chatd.replies.review import compose_answer, review
from chatd.replies.sessions import Request
from chatd.replies.writing import Prepared, prepare
from chatd.settings import Settings
from context.layers import Layers
from context.library.library import Library
from context.seal import KeyRing, Sealer
from protocols.codec import decode_server, encode
from tests.inference.conformance import SPECIAL_TEXTS
from tests.inference.test_injection import CANARIES, IDS, ORDERS, OTHERS, SEED, TOKENS, _bad, _layers
from tests.vignettes import NOW

pytestmark = pytest.mark.inference

PROMPTS = int(os.environ.get("CHATD_INJECTION_PROMPTS", "120"))
#: Each so many-th text is written to its end, the others to ``SHORT_TOKENS``: a CPU takes seconds for a whole one.
WHOLE_EACH = 10
SHORT_TOKENS = 4
#: No single wait is longer.
PATIENCE_S = 590.0
SETTINGS = Settings(
    engine="mlx",
    engine_slots=13,
    engine_reserved_slots=1,
    # Enough for nearly every text to come to its end, at a temperature at which every token may come.
    answer_max_tokens=700,
    answer_temperature=1.0,
    # Short: what a CPU is slow at is taking prompts in. Of a page of the library and of the chart some lines fall out.
    prompt_budget_tokens=1_900,
)


class Watched(MlxEngine):
    """The real engine; ``seen`` holds all that it was ever given to write."""

    def __init__(self, folder: Path) -> None:
        slots, reserved = SETTINGS.engine_slots, SETTINGS.engine_reserved_slots
        super().__init__(folder, slots=slots, reserved=reserved, prefix_cache_bytes=1 << 28, clock=SystemClock())
        self.seen: dict[str, Generation] = {}

    def generate(self, generation: Generation) -> AsyncGenerator[Delta | Finished, None]:
        self.seen[generation.id] = generation
        return super().generate(generation)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One question of the corpus, up to its job; ``runs.Run`` is the gateway's own."""

    key: str = "dr.a|cardiology|sess_test"
    response_id: str
    request: Request
    layers: Layers
    facts: FactsResult


def _asked(number: int, chance: random.Random, library: Library) -> Asked:
    layers, content = _layers(chance), f"What now? {_bad(chance)}"
    request = Request(
        client_msg_id=f"m{number}",
        content=content,
        user_id=f"dr.{number}",
        department="cardiology",
        patient_id="7823",
        session_id="sess_test",
        lang="en",
        urgency="routine",
        received_at=NOW,
    )
    facts = build(layers, content, library=library, now=NOW, lang="en")
    return Asked(response_id=f"resp_{number}", request=request, layers=layers, facts=facts)


def _prepared(asked: Asked, *, is_whole: bool) -> Prepared:
    settings = SETTINGS if is_whole else msgspec.structs.replace(SETTINGS, answer_max_tokens=SHORT_TOKENS)
    return prepare(asked, asked.facts, asked.layers, settings=settings, digest_key=bytes(32))


class Ward:
    """A queue in Redis, and one worker on it with the watched engine."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.tokens = Tokens.load(folder)
        self.engine = Watched(folder)
        self.queue = JobQueue(redis, Sealer(KeyRing.generate()), limits_of(SETTINGS))
        worker = Worker(
            self.engine, self.queue, self.tokens, clock=SystemClock(), worker_id="w1", settings=SETTINGS, redis=redis
        )
        self.running = asyncio.create_task(worker.run())
        # Twice what is written at once: enough that the queue is never empty, and few that look for their end.
        self.room = asyncio.Semaphore(2 * SETTINGS.engine_slots)

    async def write(self, prepared: Prepared, doctor: str) -> tuple[str, Outcome]:
        """Queue one in its turn, and wait for its text and its end."""
        async with self.room:
            return await self._write(prepared, doctor)

    async def _write(self, prepared: Prepared, doctor: str) -> tuple[str, Outcome]:
        job_id = prepared.job.job_id
        # The lane with the most time: nobody waits here, and the machine may be busy.
        placed = await self.queue.enqueue(
            prepared.job, doctor=doctor, lane="background", follower=job_id, now_ms=epoch_ms(SystemClock().now())
        )
        assert placed.outcome == "queued"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert not self.running.done(), "the worker has ended"
                events = (await self.queue.read({job_id: "0"}))[job_id] or []
                if events and events[-1].outcome is not None:
                    written = [event.text for event in events if event.attempt == events[-1].attempt]
                    return "".join(written), events[-1].outcome
                await asyncio.sleep(0.25)


@pytest.fixture
async def ward(redis: Redis, tmp_path: Path) -> AsyncIterator[Ward]:
    tiny.make(tmp_path / "tiny", "1m")
    ward = Ward(redis, tmp_path / "tiny")
    yield ward
    await tasks.end([ward.running])


def _check_ids(generation: Generation, prepared: Prepared, tokens: Tokens) -> None:
    """What the engine was given is the prompt's ids, with the template's special ids at the template's places."""
    frame = tokens.prompt([Piece(name="x", text="x")])[0]
    special = tokens.special_ids
    ids = [token for segment in generation.segments for token in segment]
    assert [token for token in ids if token in special] == [token for token in frame if token in special]
    assert (ids[0], ids.count(tokens.bos_id)) == (tokens.bos_id, 1)
    assert all(special.isdisjoint(segment) for segment in generation.segments[1:-1])
    text = "".join(piece.text for piece in prepared.job.pieces).strip()
    assert tokens.decode(ids) == f"user\n{text}\nmodel\n"
    assert generation.grammar == grammar(IDS)


def _check_text(text: str, outcome: Outcome) -> bool:
    """The words as they came of the engine, before anything is filtered; True for a whole text."""
    assert outcome.reason in {"stop", "length"}
    assert not [name for name in SPECIAL_TEXTS if name in text]
    labels = [line.split(":")[0].lower() for line in text.split("\n") if not line.startswith("- ")]
    whole = outcome.reason == "stop"
    if whole:
        assert labels == [*SECTIONS, ""]
        *_, last, end = text.split("\n")
        assert end == ""
        assert set(last.removeprefix("Actions: ").split(", ")) <= {*IDS, "none"}
    sections = parse(text, IDS, has_stopped=whole)
    assert sections.is_complete or not whole
    assert set(sections.actions) <= set(IDS)
    return whole


def _check_answer(asked: Asked, prepared: Prepared, text: str, outcome: Outcome) -> None:
    """Nobody else is named in the model's part, and the frame offers what the rules propose."""
    facts, layers = asked.facts, asked.layers
    sections = parse(text, IDS, has_stopped=outcome.reason == "stop")
    reviewed = review(sections, facts=facts, layers=layers, prompt=prepared.prompt, others=OTHERS)
    proposed = proposals(facts, layers, response_id=asked.response_id, now=NOW)
    answer = compose_answer(
        reviewed,
        facts=facts,
        layers=layers,
        request=asked.request,
        response_id=asked.response_id,
        now=NOW,
        proposed=proposed,
        finish=outcome.reason,
        model=outcome.model,
    )
    assert decode_server(encode(answer)) == answer
    offered = {action.catalog_id for action in answer.content.structured_data.actions}
    assert offered == {proposal.action.id for proposal in proposed} <= set(IDS)
    # The own name is as the chart has it, words of others included; those are this patient's then.
    own = layers.patient.name.lower() if layers.patient else ""
    said: Any = (
        reviewed.headline,
        reviewed.findings,
        reviewed.interpretation,
        reviewed.recommendations,
        reviewed.missing,
    )
    shown = msgspec.json.encode(said).decode().lower()
    assert not [word for word in CANARIES if word.lower() in shown and word.lower() not in own]


async def test_injection_is_text_to_a_running_engine_and_no_part_of_an_answer(ward: Ward) -> None:
    """From the chart to the frame: no special id goes in, no foreign action and nobody else comes out."""
    chance, library = random.Random(SEED), Library.load()
    corpus = [_asked(number, chance, library) for number in range(PROMPTS)]
    jobs = [_prepared(asked, is_whole=number % WHOLE_EACH == 0) for number, asked in enumerate(corpus)]
    ends = await asyncio.gather(
        *(ward.write(job, asked.request.user_id) for job, asked in zip(jobs, corpus, strict=True))
    )
    whole = bad = 0
    for asked, job, (text, outcome) in zip(corpus, jobs, ends, strict=True):
        (generation,) = (one for name, one in ward.engine.seen.items() if name.startswith(f"{job.job.job_id}/"))
        _check_ids(generation, job, ward.tokens)
        whole += _check_text(text, outcome)
        _check_answer(asked, job, text, outcome)
        bad += any(words.split("\n")[0] in job.prompt.text for words in (*ORDERS, *TOKENS))
    # Nothing but these and the worker's own canary was given to the engine.
    assert {name.split("/")[0] for name in ward.engine.seen} == {"canary", *(job.job.job_id for job in jobs)}
    assert bad > PROMPTS / 2
    assert whole > PROMPTS / WHOLE_EACH / 2
