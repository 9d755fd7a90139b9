"""One question's way from accepted to answered: read the layers, send the facts, send the one answer.

A run belongs to the node that holds its lease. Every step is an append that is done once however often it is
tried, and what is computed rests on the time the question came in, so a node that takes over computes the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from redis.exceptions import RedisError

from chatd import metrics, tasks
from chatd.actions.rules import Proposal
from chatd.clock import Clock, iso_ms
from chatd.faults import FaultPoints
from chatd.inference.queue import QueueUnavailable
from chatd.inference.sections import parse
from chatd.inference.watch import ModelWatch
from chatd.logs import error_name
from chatd.replies.answer import failed, proposals, respond
from chatd.replies.facts import FactsResult, build
from chatd.replies.review import compose_answer, review
from chatd.replies.sessions import Fenced, Request, SessionLost, Sessions, SessionsUnavailable
from chatd.replies.stale import Rests, rest_of
from chatd.replies.wording import say
from chatd.replies.writing import Unwritten, Writer, Written
from context.layers import Layers, Message, PendingAction
from context.library import Library
from context.store import (
    ContextNotLoaded,
    ContextStore,
    DepartmentUnknown,
    PatientCard,
    PatientUnknown,
    StoreUnavailable,
)
from protocols.errors import ChatdError, ErrorCode, RemoteProtocolError, error_text
from protocols.frames import AiResponse, Facts, Timing

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: First and longest pause before a step is tried again while Redis is away.
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 2.0

#: Called with (session key, epoch, seq, frame without position) after each append of this node.
Appended = Callable[[str, str, int, bytes], None]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted question on its way."""

    key: str
    epoch: str
    response_id: str
    request: Request


class Runs:
    """The runs of this node: one task each, at most as many as there are accepted questions.

    A task is owned by this object and ends with its answer, when another node has taken over, when the session
    is lost, or by ``drain``.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        store: ContextStore,
        library: Library,
        clock: Clock,
        node_id: str,
        action_ttl_s: float,
        give_up_s: float,
        faults: FaultPoints,
        writer: Writer | None = None,
        watch: ModelWatch | None = None,
        rests: Rests | None = None,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._library = library
        self._clock = clock
        self._node_id = node_id
        self._action_ttl = timedelta(seconds=action_ttl_s)
        self._give_up_ms = round(give_up_s * 1000)
        self._faults = faults
        self._writer = writer
        self._watch = watch
        self._rests = rests
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="facts")
        # Of its own: a review takes longer than facts, for which the next doctor waits.
        self._review_thread = ThreadPoolExecutor(1, thread_name_prefix="review")
        self._tasks: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self.on_appended: Appended | None = None
        #: Called once for each answer that this node has put into the log.
        self.on_answered: Callable[[Run, AiResponse], None] = lambda _run, _answer: None
        self.on_refused: Callable[[str, RemoteProtocolError], None] = lambda _key, _error: None

    @property
    def working(self) -> dict[tuple[str, str], list[str]]:
        """The response ids of this node's runs, by (key, epoch) of their sessions."""
        by_session: dict[tuple[str, str], list[str]] = {}
        for run, _ in self._tasks.values():
            by_session.setdefault((run.key, run.epoch), []).append(run.response_id)
        return by_session

    def start(self, run: Run, layers: Layers | None = None) -> None:
        """Begin or take over a run; a run that is already going on here goes on."""
        if run.response_id in self._tasks:
            return
        task = asyncio.create_task(self._drive(run, layers), name=f"run-{run.response_id}")
        self._tasks[run.response_id] = (run, task)
        metrics.RUNS_OPEN.inc()

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(run.response_id, None)
            metrics.RUNS_OPEN.dec()

        task.add_done_callback(ended)

    async def cancel(self, run: Run) -> int:
        """End a run with status ``cancelled`` unless it has ended; returns the ``seq`` of its one answer.

        Any node may cancel: the first final frame wins and the others change nothing.
        """
        answer = failed(
            run.request,
            response_id=run.response_id,
            text=say("answer.cancelled", run.request.lang),
            now=self._clock.now(),
            status="cancelled",
        )
        seq, _ = await self._finish(run, answer, owner="")
        if (running := self._tasks.get(run.response_id)) is not None:
            await tasks.end([running[1]])
        if self._writer is not None:
            # Also after an answer that was there before: then it only lets go of what is left.
            await self._writer.cancel(run.response_id)
        return seq

    async def abandon(self, key: str) -> None:
        """End this node's runs of a session that is about to be shredded: nothing may be written after it.

        What a model writes for the session, for whatever node, is stopped too. Raises SessionsUnavailable.
        """
        await tasks.end([task for run, task in self._tasks.values() if run.key == key])
        if self._writer is not None:
            for response_id, _ in await self._sessions.open_requests(key):
                await self._writer.cancel(response_id)

    async def drain(self, timeout_s: float) -> None:
        """Wait for running answers, at most ``timeout_s``; what is left is taken over by another node."""
        running = [task for _, task in self._tasks.values()]
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        await tasks.end([task for _, task in self._tasks.values()])

    def close(self) -> None:
        """Let go of the threads, after the last ``drain``: a run that still came would fail."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._review_thread.shutdown(wait=False, cancel_futures=True)

    async def _drive(self, run: Run, layers: Layers | None) -> None:
        try:
            await self._to_the_end(run, layers)
        finally:
            if self._writer is not None:
                self._writer.leave(run.response_id)

    async def _to_the_end(self, run: Run, layers: Layers | None) -> None:
        started_ms = self._clock.monotonic_ms()
        pause_s = _BACKOFF_FIRST_S
        while True:
            try:
                await self._answer(run, layers, started_ms)
                return
            except (SessionLost, Fenced) as ended:
                log.info("run_left", response_id=run.response_id, reason=type(ended).__name__)
                if isinstance(ended, SessionLost) and self._writer is not None:
                    # Nobody is left who could read it; a run that was taken over needs its job.
                    await self._writer.cancel(run.response_id)
                return
            except (SessionsUnavailable, StoreUnavailable, ContextNotLoaded, QueueUnavailable) as error:
                if self._clock.monotonic_ms() - started_ms > self._give_up_ms:
                    log.warning("run_given_up", response_id=run.response_id, reason=type(error).__name__)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _BACKOFF_MOST_S)
            except Exception as error:  # the one place where an unexpected fault becomes a visible answer
                log.error("run_failed", response_id=run.response_id, error=error_name(error))
                try:
                    await self._fail(run)
                except (SessionLost, Fenced, SessionsUnavailable):
                    log.warning("run_failure_not_recorded", response_id=run.response_id)
                return

    async def _answer(self, run: Run, layers: Layers | None, started_ms: int) -> None:
        request = run.request
        if layers is None:
            try:
                layers = await self._store.read(
                    department_id=request.department,
                    user_id=request.user_id,
                    patient_id=request.patient_id,
                    session_key=run.key,
                )
            except (PatientUnknown, DepartmentUnknown):
                # The record was withdrawn between accepted and now.
                await self._fail(run, ErrorCode.PATIENT_UNKNOWN)
                return
            if layers.patient is not None and request.department not in layers.patient.departments:
                await self._fail(run, ErrorCode.FORBIDDEN)
                return
        # Everything below rests on the moment the question came in: doing it again gives the same bytes.
        now = request.received_at
        facts = await self._off_loop(build, layers, request.content, library=self._library, now=now, lang=request.lang)
        frame = facts.frame(response_id=run.response_id, client_msg_id=request.client_msg_id)
        await self._append(run, f"facts:{run.response_id}", msgspec.json.encode(frame))
        metrics.FACTS_SECONDS.observe((self._clock.monotonic_ms() - started_ms) / 1000)
        self._faults.reached("facts")
        await self._rest_on(run, frame, layers)
        written = await self._written(run, facts, layers, started_ms)
        answer, proposed = await self._composed(run, facts, layers, written)
        if answer.mode == "normal" and self._watch is not None and self._watch.mode == "slow":
            answer = msgspec.structs.replace(answer, mode="slow")
        elapsed_ms = self._clock.monotonic_ms() - started_ms
        answer = msgspec.structs.replace(answer, processing_time_ms=elapsed_ms)
        _, is_said = await self._finish(run, answer, owner=self._node_id, proposed=proposed)
        if written is not None and self._writer is not None:
            await self._writer.forget(run.response_id, written.job_id)
        if not is_said:
            # It was cancelled, or answered by another node: this one's words were never seen.
            return
        metrics.ANSWER_SECONDS.observe(elapsed_ms / 1000)
        await self._remember(run, answer)
        await self._tell_if_replaced(run)

    async def _rest_on(self, run: Run, frame: Facts, layers: Layers) -> None:
        """Have the answer watched: whoever brings a new value tells those that rest on the old one."""
        if self._rests is None or layers.patient is None:
            return
        rest = rest_of(frame, layers.patient, key=run.key, epoch=run.epoch, now=run.request.received_at)
        try:
            await self._rests.note(layers.patient.patient_id, rest)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("answer_not_watched", response_id=run.response_id, error=error_name(error))

    async def _tell_if_replaced(self, run: Run) -> None:
        """A value may have come between the reading of the record and the watching of this answer."""
        if self._rests is None or run.request.patient_id is None:
            return
        try:
            patient = await self._store.patient(run.request.patient_id)
            await self._rests.tell(self._sessions, patient, self._clock.now(), only=run.response_id)
        except (ChatdError, RedisError, OSError, TimeoutError) as error:
            log.warning("answer_not_watched", response_id=run.response_id, error=error_name(error))

    async def _written(
        self, run: Run, facts: FactsResult, layers: Layers, started_ms: int
    ) -> Written | Unwritten | None:
        """What a model says to this question, or why there is nothing; None where none is asked."""
        if self._writer is None or self._watch is None or not facts.question.in_scope:
            return None
        written = await self._writer.write(
            run, facts, layers, started_ms=started_ms, is_down=self._watch.is_down, off_loop=self._off_loop
        )
        if isinstance(written, Unwritten):
            log.info("not_written", response_id=run.response_id, code=written.code.value)
            if written.is_refused:
                metrics.QUEUE_REFUSED.labels(written.code.value).inc()
                refusal = RemoteProtocolError(
                    written.code, client_msg_id=run.request.client_msg_id, retry_after_ms=written.retry_after_ms
                )
                self.on_refused(run.key, refusal)
        return written

    async def _composed(
        self, run: Run, facts: FactsResult, layers: Layers, written: Written | Unwritten | None
    ) -> tuple[AiResponse, tuple[Proposal, ...]]:
        """The answer from what was written, checked; from facts alone where that cannot be used."""
        if isinstance(written, Written):
            others = await self._others(run)
            work = partial(self._review, run, facts, layers, written, others)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._review_thread, work)
            except Exception as error:  # words that cannot be checked are not shown, and the facts still answer
                log.error("review_failed", response_id=run.response_id, error=error_name(error))
                written = Unwritten(code=ErrorCode.OUTPUT_INVALID, lane=written.lane, job_id=written.job_id)
        return await self._off_loop(self._compose, run, facts, layers, written)

    async def _others(self, run: Run) -> tuple[PatientCard, ...]:
        """The department's patients: none but this answer's own may be named in it."""
        return await self._store.cards_of(run.request.department)

    def _review(
        self, run: Run, facts: FactsResult, layers: Layers, written: Written, others: tuple[PatientCard, ...]
    ) -> tuple[AiResponse, tuple[Proposal, ...]]:
        """The answer from the model's words, line by line against what is known."""
        outcome = written.outcome
        # The catalogue the text was held to is this department's, for a shared text too.
        ids = [action.id for action in layers.department.actions]
        sections = parse(written.text, ids, has_stopped=outcome.reason == "stop")
        reviewed = review(sections, facts=facts, layers=layers, prompt=written.prompt, others=others)
        metrics.MODEL_HELD_BACK.inc(reviewed.held_back)
        proposed = self._proposals(run, facts, layers)
        answer = compose_answer(
            reviewed,
            facts=facts,
            layers=layers,
            request=run.request,
            response_id=run.response_id,
            now=run.request.received_at,
            proposed=proposed,
            finish=outcome.reason,
            model=outcome.model,
            timing=Timing(
                queue_ms=outcome.queue_ms,
                ttft_ms=outcome.ttft_ms,
                generation_ms=outcome.generation_ms,
                tokens_in=outcome.tokens_in,
                tokens_out=outcome.tokens_out,
                prefix_hit_tokens=outcome.prefix_hit_tokens,
            ),
            attempt=written.attempt,
            is_shared=written.is_shared,
        )
        return answer, proposed

    def _compose(
        self, run: Run, facts: FactsResult, layers: Layers, unwritten: Unwritten | None
    ) -> tuple[AiResponse, tuple[Proposal, ...]]:
        """The answer from facts, and its quick actions with all that a later confirmation is bound to."""
        request = run.request
        proposed = self._proposals(run, facts, layers)
        answer = respond(
            facts,
            layers,
            request,
            response_id=run.response_id,
            now=request.received_at,
            proposed=proposed,
            model_configured=unwritten is not None,
        )
        if unwritten is not None:
            answer = msgspec.structs.replace(answer, finish_reason=unwritten.code.value)
        return answer, proposed

    def _proposals(self, run: Run, facts: FactsResult, layers: Layers) -> tuple[Proposal, ...]:
        return proposals(
            facts,
            layers,
            response_id=run.response_id,
            now=run.request.received_at,
            session_key=run.key,
            ttl=self._action_ttl,
        )

    async def _off_loop(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run pure computation on this object's one thread: ten milliseconds a question, and half a second for the
        strangest text, in which other phones' frames must not wait. At most one task per accepted question waits."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    async def _finish(
        self, run: Run, answer: AiResponse, *, owner: str, proposed: Sequence[Proposal] = ()
    ) -> tuple[int, bool]:
        """End the run with its one answer; returns the answer's ``seq`` and whether it is this one."""
        request = run.request
        seq, new, epoch = await self._sessions.append(
            run.key,
            run.epoch,
            f"final:{run.response_id}",
            encoded := msgspec.json.encode(answer),
            response_id=run.response_id,
            owner=owner,
            ends_run=True,
            proposals=[(proposal.action_id, msgspec.json.encode(proposal)) for proposal in proposed],
        )
        if new:
            metrics.QUESTIONS.labels(answer.status).inc()
            log.info(
                "answered",
                response_id=run.response_id,
                user_id=request.user_id,
                department=request.department,
                status=answer.status,
                processing_time_ms=answer.processing_time_ms,
                frame_bytes=len(encoded),
            )
            self.on_answered(run, answer)
            self._faults.reached("answer")
            if self.on_appended is not None:
                self.on_appended(run.key, epoch, seq, encoded)
        return seq, new

    async def _append(self, run: Run, event_id: str, frame: bytes) -> None:
        seq, new, epoch = await self._sessions.append(
            run.key, run.epoch, event_id, frame, response_id=run.response_id, owner=self._node_id
        )
        if new and self.on_appended is not None:
            self.on_appended(run.key, epoch, seq, frame)

    async def _fail(self, run: Run, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        answer = failed(
            run.request,
            response_id=run.response_id,
            text=error_text(code, run.request.lang),
            now=self._clock.now(),
        )
        await self._finish(run, answer, owner=self._node_id)

    async def _remember(self, run: Run, answer: AiResponse) -> None:
        """Write question and answer into the session's memory; losing this loses no promise."""
        request = run.request
        about = request.patient_id
        asked = Message(role="doctor", text=request.content, at=request.received_at, patient_id=about)
        told = Message(
            role="chatd",
            text=answer.content.text,
            at=request.received_at,
            patient_id=about,
            response_id=run.response_id,
        )
        pending = tuple(
            PendingAction(
                action_id=action.action_id,
                catalog_id=action.catalog_id,
                label=action.label,
                patient_id=action.bound.patient_id,
                expires_at=request.received_at + self._action_ttl,
            )
            for action in answer.content.structured_data.actions
        )
        try:
            await self._store.remember(
                run.key,
                asked,
                told,
                patient_id=about,
                topic=answer.response_type,
                pending=pending,
            )
        except StoreUnavailable:
            log.warning("memory_not_written", response_id=run.response_id, at=iso_ms(self._clock.now()))
