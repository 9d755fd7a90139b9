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

from chatd import metrics, tasks
from chatd.actions.rules import Proposal
from chatd.clock import Clock, iso_ms
from chatd.faults import FaultPoints
from chatd.logs import error_name
from chatd.replies.answer import failed, proposals, respond
from chatd.replies.facts import FactsResult, build
from chatd.replies.sessions import Fenced, Request, SessionLost, Sessions, SessionsUnavailable
from chatd.replies.wording import say
from context.layers import Layers, Message, PendingAction
from context.library import Library
from context.store import ContextNotLoaded, ContextStore, DepartmentUnknown, PatientUnknown, StoreUnavailable
from protocols.errors import ErrorCode, error_text
from protocols.frames import AiResponse

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
        model_configured: bool,
        action_ttl_s: float,
        give_up_s: float,
        faults: FaultPoints,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._library = library
        self._clock = clock
        self._node_id = node_id
        self._model_configured = model_configured
        self._action_ttl = timedelta(seconds=action_ttl_s)
        self._give_up_ms = round(give_up_s * 1000)
        self._faults = faults
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="facts")
        self._tasks: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self.on_appended: Appended | None = None

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
            running[1].cancel()
        return seq

    async def abandon(self, key: str) -> None:
        """End this node's runs of a session that is about to be shredded: nothing may be written after it."""
        await tasks.end([task for run, task in self._tasks.values() if run.key == key])

    async def drain(self, timeout_s: float) -> None:
        """Wait for running answers, at most ``timeout_s``; what is left is taken over by another node."""
        running = [task for _, task in self._tasks.values()]
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        await tasks.end([task for _, task in self._tasks.values()])

    def close(self) -> None:
        """Let go of the thread, after the last ``drain``: a run that still came would fail."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drive(self, run: Run, layers: Layers | None) -> None:
        started_ms = self._clock.monotonic_ms()
        pause_s = _BACKOFF_FIRST_S
        while True:
            try:
                await self._answer(run, layers, started_ms)
                return
            except (SessionLost, Fenced) as ended:
                log.info("run_left", response_id=run.response_id, reason=type(ended).__name__)
                return
            except (SessionsUnavailable, StoreUnavailable, ContextNotLoaded) as error:
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
        answer, proposed = await self._off_loop(self._compose, run, facts, layers)
        elapsed_ms = self._clock.monotonic_ms() - started_ms
        answer = msgspec.structs.replace(answer, processing_time_ms=elapsed_ms)
        _, is_said = await self._finish(run, answer, owner=self._node_id, proposed=proposed)
        if not is_said:
            # It was cancelled, or answered by another node: this one's words were never seen.
            return
        metrics.ANSWER_SECONDS.observe(elapsed_ms / 1000)
        await self._remember(run, answer)

    def _compose(self, run: Run, facts: FactsResult, layers: Layers) -> tuple[AiResponse, tuple[Proposal, ...]]:
        """The answer, and its quick actions with all that a later confirmation is bound to."""
        request = run.request
        now = request.received_at
        proposed = proposals(
            facts, layers, response_id=run.response_id, now=now, session_key=run.key, ttl=self._action_ttl
        )
        answer = respond(
            facts,
            layers,
            request,
            response_id=run.response_id,
            now=now,
            proposed=proposed,
            model_configured=self._model_configured,
        )
        return answer, proposed

    async def _off_loop(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run pure computation on this object's one thread: ten milliseconds a question, and half a second for the
        strangest text, in which other phones' frames must not wait. At most one task per accepted question waits."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    async def _finish(
        self, run: Run, answer: AiResponse, *, owner: str, proposed: Sequence[Proposal] = ()
    ) -> tuple[int, bool]:
        """End the run with its one answer; returns the answer's ``seq`` and whether it is this one."""
        request = run.request
        seq, new = await self._sessions.append(
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
            self._faults.reached("answer")
            if self.on_appended is not None:
                self.on_appended(run.key, run.epoch, seq, encoded)
        return seq, new

    async def _append(self, run: Run, event_id: str, frame: bytes) -> None:
        seq, new = await self._sessions.append(
            run.key, run.epoch, event_id, frame, response_id=run.response_id, owner=self._node_id
        )
        if new and self.on_appended is not None:
            self.on_appended(run.key, run.epoch, seq, frame)

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
