"""What travels through the queue: a job to the worker, its results back, and what a worker says of itself.

A job's id is its run's ``response_id``. Everything with text is sealed with the job's id as associated data.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from chatd.inference.lanes import LaneName

#: Why a text ended. ``stop``: the model was done. ``length``: the bound of tokens was reached. ``deadline``: its time
#: was over. ``cancelled``: nobody wants it any more. ``error``: the engine failed (``Outcome.error`` says how).
FinishReason = Literal["stop", "length", "deadline", "cancelled", "error"]


ResultKind = Literal["begun", "text", "moving", "restart", "ended"]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One segment of the prompt (``context.compose.Segment``): ``name`` says how widely its beginning is shared."""

    name: str
    text: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to write one answer; sealed in the queue.

    ``actions``: the catalogue ids that the grammar allows, in the catalogue's order. ``salt``: equal for jobs that
    may share cached work (the hospital); engines that cache across requests keep different salts apart.
    """

    job_id: str
    pieces: tuple[Piece, ...]
    actions: tuple[str, ...]
    max_tokens: int
    temperature: float = 0.0
    salt: str = ""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Which model writes. ``revision``: a hash over the model's files (or the server's own word where the files are
    not at hand); ``template``: hash of the chat template; both hex, empty where unknown."""

    id: str
    revision: str = ""
    quantization: str = ""
    template: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended; the last event of a job that was not begun again.

    ``error``: a code of ``protocols.errors.ErrorCode``, empty unless ``reason`` is ``error``. Times in ms from the
    claim. ``choice_logprobs``: natural logarithms of the probabilities of the tokens at the grammar's choice points,
    after the mask, for calibration; () where the engine gives none.
    """

    reason: FinishReason
    error: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    prefix_hit_tokens: int = 0
    ttft_ms: int | None = None
    generation_ms: int | None = None
    queue_ms: int | None = None
    model: ModelCard | None = None
    choice_logprobs: tuple[float, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a job's stream, in order.

    ``kind``: ``begun`` (a worker has it: ``attempt`` tells which), ``text`` (``text`` goes on where the last one of
    the same attempt ended), ``moving`` (no text, but its engine has made a step), ``restart`` (the worker was lost or
    its engine failed; the job waits again, what was written is void), ``ended`` (``outcome``; nothing follows).
    """

    id: str
    kind: ResultKind
    attempt: int
    text: str = ""
    outcome: Outcome | None = None


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a worker's hands. ``fence`` stands in every write; ``deadline_ms`` is Unix time in ms."""

    job_id: str
    fence: int
    attempt: int
    lane: LaneName
    deadline_ms: int
    queue_ms: int
    job: Job


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself with each beat; never sealed, holds no text.

    ``canary_ms``: Unix time in ms of the last token that the engine really made, 0 before the first. ``slots``: rows
    that run at once, of which ``reserved`` are for ``stat``.
    """

    worker_id: str
    engine: str
    state: Literal["starting", "ready", "draining"]
    at_ms: int
    canary_ms: int = 0
    slots: int = 0
    reserved: int = 0
    active: int = 0
    model: ModelCard | None = None
