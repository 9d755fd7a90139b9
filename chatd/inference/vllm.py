"""An engine on the other side of HTTP: vLLM, or any server that speaks OpenAI's completions the way vLLM does.

chatd sends token ids and reads token ids back, so the template, the borders of segments and the making of text stay
on this side. The server's own words about a failure are never repeated: they may hold a piece of a prompt.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import chain
from typing import Any, Final, Protocol

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from chatd.clock import Clock, SystemClock
from chatd.inference.engine import Capacity, Delta, EngineError, EngineFull, EngineInfo, Finished, Generation, Progress
from chatd.inference.jobs import FinishReason, ModelCard
from chatd.inference.texts import Text

#: No longer than this without a byte once a request is sent; a server that is busy with others' prompts needs some.
SILENCE_S: Final = 30.0
CONNECT_S: Final = 5.0
#: After the last frame: until the response must have ended, so that the server sees no client that went away.
TAIL_S: Final = 0.5
#: One frame. The first one repeats the prompt's ids: 7 bytes each, 32,768 of them at most.
LINE_BYTES: Final = 1 << 20
#: A whole response: so much for itself and so much for each token that it may have (a frame is about 600 bytes).
RESPONSE_BYTES: Final = 1 << 20
RESPONSE_BYTES_PER_TOKEN: Final = 4096
#: A list of models, a page of metrics (vLLM's has 100 kB).
BODY_BYTES: Final = 4 << 20
#: How often the server's counters are read.
POLL_S: Final = 1.0
#: A beginning that was warmed is taken to be there for so long.
WARM_KEEP_MS: Final = 60_000
_WARM_KEYS: Final = 256
#: Waits between attempts to reach a server that is still loading its model, each shortened by chance by up to half.
START_BACKOFF_S: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
#: The same before the one second attempt at a request of which no byte has come.
RETRY_S: Final = 0.2
#: Where the server does not say how long prompt and text may be.
CONTEXT_TOKENS: Final = 8192
#: MedGemma's marks around a thought, <unused94> and <unused95>. Ordinary tokens to tokenizer and server alike.
THINKING_IDS: Final = (100, 101)

_BUSY: Final = frozenset((429, 503))
_ABSENT: Final = frozenset((404, 405, 501))
_REASONS: Final[Mapping[str, FinishReason]] = {"stop": "stop", "length": "length"}
_PLAIN: Final = re.compile(r"[A-Za-z]{1,40}")
_DONE: Final = b"[DONE]"

_RUNNING: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_WORK: Final = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")

#: What a server must write when held to ``_PROBE_GRAMMAR``; one that ignores grammars writes anything else.
_PROBE_GRAMMAR: Final = 'start: "chatd-yes" | "chatd-no"'
_PROBE_ANSWERS: Final = frozenset(("chatd-yes", "chatd-no"))
_PROBE_TEXT: Final = "Potássio 5,9 mmol/L às 07:45.\n- K+ > 5.5 → ECG"
_PROBE_TOKENS: Final = 24

_dice: Final = random.SystemRandom()


class TextStream(Protocol):
    """Ids in, text out, never half a character."""

    def push(self, token_id: int, /) -> str: ...

    def end(self) -> str: ...


class Vocabulary(Protocol):
    """The part of ``chatd.inference.tokens.Tokens`` that this engine uses."""

    @property
    def stop_ids(self) -> Sequence[int]: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def template_hash(self) -> str: ...

    def encode(self, text: str, /) -> Sequence[int]: ...

    def stream(self) -> TextStream: ...


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Served(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Served]


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_frames: Final = msgspec.json.Decoder(_Frame)


class _Failure(Exception):
    """One request failed. ``error``: a word for the log. ``may_retry``: nothing was begun on the other side."""

    def __init__(self, error: str, *, may_retry: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.may_retry = may_retry


class _Run(Text):
    """One request under way; the bound of the response bounds its text.

    ``ending``: why this side ended it. ``reason``: why the server did.
    """

    def __init__(self, generation: Generation, stream: TextStream, now_ms: int) -> None:
        super().__init__()
        self.generation = generation
        self.begun_ms = now_ms
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.has_bytes = False
        self.has_ids = False
        self.tokens_in = sum(map(len, generation.segments))
        self.tokens_out = 0
        self.hit_tokens = 0
        self.first_ms: int | None = None
        self.logprobs: list[float] = []
        self.reason: FinishReason | None = None
        self.ending: FinishReason | None = None
        self.error = ""

    def close(self, ending: FinishReason) -> None:
        """Let it end at once. The first reason stays."""
        if self.ending is None and self.finished is None:
            self.ending = ending
            if self.task is not None:
                self.task.cancel()

    def finish(self, now_ms: int) -> None:
        """The one place where ``finished`` is set; what the server said of the end counts before what we wanted."""
        reason = self.reason or self.ending or "error"
        finished = Finished(
            reason=reason,
            text="",
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            prefix_hit_tokens=self.hit_tokens,
            ttft_ms=None if self.first_ms is None else self.first_ms - self.begun_ms,
            generation_ms=now_ms - self.begun_ms,
            choice_logprobs=tuple(self.logprobs),
            error=(self.error or "cut") if reason == "error" else "",
        )
        self.end(finished)


class VllmEngine:
    """See ``engine.Engine`` for what each method promises.

    Deadlines and cancels are kept here and need nothing of the server: closing the response is what stops it. A
    consumer that is slow holds nothing up, its text waits joined. Slots are this engine's own requests; what other
    clients of the same server run is taken off ``capacity`` as far as the server's metrics tell it.

    Args:
        url: ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:/PATH`` of the server's socket.
        tokens: The tokenizer of the served model; ``start`` compares it with the server's where that can be asked.
        model: Id as the server lists it; empty where it serves one.
        slots: At most the server's own bound (``--max-num-seqs``), so that nothing waits where chatd does not see it.
        reserved: Of them, for urgent generations.
        start_s: How long ``start`` waits for a server that does not answer yet.
        revision: Hash of the model's files where they are at hand here; the server has no word for it.
        api_key: Sent as a bearer token.
    """

    def __init__(
        self,
        url: str,
        tokens: Vocabulary,
        model: str,
        *,
        slots: int = 20,
        reserved: int = 2,
        clock: Clock | None = None,
        start_s: float = 120.0,
        revision: str = "",
        api_key: str = "",
    ) -> None:
        self._base, self._uds = _address(url)
        self._tokens = tokens
        self._model = model
        self._slots = slots
        self._reserved = reserved
        self._clock = clock or SystemClock()
        self._start_s = start_s
        self._revision = revision
        # A connection for each request: a new one costs nothing beside a text. Kept ones that are too old are closed
        # within the next request; if that is cancelled in the middle of it, the rest of them stays open.
        self._headers = {"accept-encoding": "identity", "connection": "close", "content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._hidden = frozenset((*tokens.special_ids, *tokens.stop_ids, *THINKING_IDS))
        self._info: EngineInfo | None = None
        self._http: httpx.AsyncClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_open = False
        self._runs: dict[str, _Run] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._steps = 0
        self._stepped_ms = 0
        self._work: float | None = None
        self._others = (0, 0)
        self._warming = asyncio.Lock()
        self._warmed: OrderedDict[int, tuple[int, int]] = OrderedDict()

    # --- the seam ---

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("not started")
        return self._info

    async def start(self) -> None:
        self._http = httpx.AsyncClient(
            base_url=self._base,
            transport=httpx.AsyncHTTPTransport(
                uds=self._uds,
                # One more than the slots for each of: warming, metrics, and a connection that is being closed.
                limits=httpx.Limits(max_connections=2 * self._slots + 4, max_keepalive_connections=0),
                trust_env=False,
            ),
            headers=self._headers,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            trust_env=False,
            follow_redirects=False,
        )
        try:
            served = await self._reach()
            self._model = served.id
            self._info = EngineInfo(
                engine="vllm",
                model=ModelCard(id=served.id, revision=self._revision, template=self._tokens.template_hash),
                context_tokens=served.max_model_len or CONTEXT_TOKENS,
                stop_ids=tuple(self._tokens.stop_ids),
            )
            await self._compare_tokens()
            await self._try_grammar()
        except BaseException:
            await self._http.aclose()
            raise
        self._is_open = True
        self._watcher = asyncio.create_task(self._watch(), name="vllm metrics")

    async def stop(self, drain_s: float) -> None:
        self._is_open = False
        if self._http is None:
            return
        if self._runs and drain_s > 0:
            waiting = asyncio.create_task(self._idle.wait())
            await asyncio.wait([waiting], timeout=drain_s)
            waiting.cancel()
        for run in list(self._runs.values()):
            run.close("cancelled")
        await self._idle.wait()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None
        await self._http.aclose()

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta | Finished, None]:
        run = self._admit(generation)
        try:
            async for event in run:
                yield event
        finally:
            run.close("cancelled")

    def cancel(self, generation_id: str) -> None:
        run = self._runs.get(generation_id)
        if run is not None:
            run.close("cancelled")

    async def warm(self, segments: Sequence[tuple[int, ...]], salt: str = "") -> int:
        """One token behind the beginning, so that its whole blocks are in the server's prefix cache.

        One at a time, outside the slots. Raises EngineError when the server fails.
        """
        if not self._is_open:
            raise EngineError("not running")
        tokens = sum(map(len, segments))
        if tokens == 0:
            return 0
        if tokens >= self.info.context_tokens:
            raise EngineError(f"beginning of {tokens} tokens does not fit")
        key = hash((salt, tuple(segments)))
        async with self._warming:
            known = self._warmed.get(key)
            now_ms = self._clock.monotonic_ms()
            if known is not None and now_ms < known[1]:
                return known[0]
            finished = await self._once(Generation(id="warm", segments=tuple(segments), max_tokens=1, salt=salt))
            if finished.reason == "error":
                raise EngineError(f"warming failed: {finished.error}")
            self._warmed[key] = (tokens, now_ms + WARM_KEEP_MS)
            self._warmed.move_to_end(key)
            while len(self._warmed) > _WARM_KEYS:
                self._warmed.popitem(last=False)
        return tokens

    def capacity(self) -> Capacity:
        """``active`` holds what other clients of the server run, where two looks at its metrics agree on it."""
        active = min(self._slots, len(self._runs) + min(self._others))
        return Capacity(slots=self._slots, reserved=self._reserved, active=active)

    def progress(self) -> Progress:
        """A step is a frame of text or a look at the metrics that finds their counters moved."""
        age_ms = max(0, self._clock.monotonic_ms() - self._stepped_ms) if self._runs else 0
        return Progress(steps=self._steps, age_ms=age_ms)

    # --- one generation ---

    def _admit(self, generation: Generation) -> _Run:
        if not self._is_open:
            raise EngineError("not running")
        if generation.id in self._runs:
            raise EngineError("this id is running already")
        tokens = sum(map(len, generation.segments))
        if tokens + generation.max_tokens > self.info.context_tokens:
            raise EngineError(f"prompt of {tokens} tokens does not fit")
        if len(self._runs) >= self._slots - (0 if generation.is_urgent else self._reserved):
            raise EngineFull("no free slot")
        now_ms = self._clock.monotonic_ms()
        run = _Run(generation, self._tokens.stream(), now_ms)
        deadline_ms = generation.deadline_ms
        if deadline_ms is not None and deadline_ms <= now_ms:
            run.reason = "deadline"
            run.finish(now_ms)
            return run
        if not self._runs:
            self._stepped_ms = now_ms
        self._runs[generation.id] = run
        self._idle.clear()
        run.task = asyncio.create_task(self._request(run), name="vllm request")
        # Not in the task itself: one that is cancelled before its first step never runs a line of its own.
        run.task.add_done_callback(lambda task: self._ended(run, task))
        if deadline_ms is not None:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later((deadline_ms - now_ms) / 1000, run.close, "deadline")
        return run

    def _ended(self, run: _Run, task: asyncio.Task[None]) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if task.cancelled():
            run.ending = run.ending or "cancelled"
        elif (error := task.exception()) is not None:
            run.error = type(error).__name__
        del self._runs[run.generation.id]
        run.finish(self._clock.monotonic_ms())
        if not self._runs:
            self._idle.set()

    async def _once(self, generation: Generation) -> Finished:
        """A request outside the slots, to its end."""
        run = _Run(generation, self._tokens.stream(), self._clock.monotonic_ms())
        await self._request(run)
        run.finish(self._clock.monotonic_ms())
        if run.finished is None:
            raise EngineError("no end")
        return run.finished

    async def _request(self, run: _Run) -> None:
        """Ask, and once more where nothing of an answer has come; failures end in ``run.error``."""
        body = self._body(run.generation)
        for is_last in (False, True):
            try:
                await self._read(run, body)
            except _Failure as failure:
                if run.reason is not None:
                    return  # the text is whole; what broke came after it
                if is_last or run.has_bytes or not failure.may_retry:
                    run.error = failure.error
                    return
                self._warmed.clear()
                await asyncio.sleep(RETRY_S * _dice.uniform(0.5, 1.0))
            else:
                return

    async def _read(self, run: _Run, body: bytes) -> None:
        max_bytes = RESPONSE_BYTES + RESPONSE_BYTES_PER_TOKEN * run.generation.max_tokens
        try:
            async with self._client.stream("POST", "/v1/completions", content=body) as response:
                if response.status_code != httpx.codes.OK:
                    status = response.status_code
                    raise _Failure(f"http {status}", may_retry=status in _BUSY)
                async with aclosing(_lines(response, max_bytes)) as source:
                    async for lines in source:
                        run.has_bytes = True
                        if self._take_lines(run, lines):
                            break
                    # To the end, so that the server sees it whole; not where the server takes its time.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(TAIL_S):
                            async for _ in source:
                                pass
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Failure("connect", may_retry=True) from error
        except httpx.TimeoutException as error:
            raise _Failure("timeout") from error
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            # A server that is being started again looks like this.
            raise _Failure("closed", may_retry=True) from error
        except httpx.HTTPError as error:
            raise _Failure(type(error).__name__) from error
        if run.reason is None:
            raise _Failure("cut")

    def _take_lines(self, run: _Run, lines: Sequence[bytes]) -> bool:
        """True when the last frame was among them."""
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # comments that keep a connection open, names of events, empty lines
            data = line[5:].strip()
            if data == _DONE:
                return True
            self._take(run, data)
        return False

    def _take(self, run: _Run, data: bytes) -> None:
        try:
            frame = _frames.decode(data)
        except (msgspec.DecodeError, ValueError) as error:
            raise _Failure("garbage") from error
        if frame.error is not None:
            raise _Failure(_fault(frame.error))
        if frame.choices is None and frame.usage is None:
            raise _Failure("frame without choices")
        if frame.usage is not None:
            self._count(run, frame.usage)
        for choice in frame.choices or ():
            if run.reason is not None:
                return
            self._choose(run, choice)

    def _choose(self, run: _Run, choice: _Choice) -> None:
        now_ms = self._clock.monotonic_ms()
        if choice.token_ids:
            run.has_ids = True
            run.tokens_out += len(choice.token_ids)
            for token_id in choice.token_ids:
                if token_id not in self._hidden:
                    run.add(run.stream.push(token_id))
        elif not run.has_ids and choice.token_ids is None and choice.text:
            run.tokens_out += 1
            run.add(choice.text)
        if run.first_ms is None and run.tokens_out:
            run.first_ms = now_ms
        if choice.logprobs is not None:
            # Exactly 0: the grammar left one token, nothing was chosen.
            run.logprobs += [value for value in choice.logprobs.token_logprobs or () if value is not None and value < 0]
        self._steps += 1
        self._stepped_ms = now_ms
        if choice.finish_reason is not None:
            run.reason = _REASONS.get(choice.finish_reason, "error")
            if run.reason == "stop":
                run.add(run.stream.end())  # at a cut, half a character is left out
            if run.reason == "error":
                run.error = "ended by the server"

    def _count(self, run: _Run, usage: _Usage) -> None:
        run.tokens_in = usage.prompt_tokens or run.tokens_in
        if usage.completion_tokens is not None and not run.has_ids:
            run.tokens_out = min(usage.completion_tokens, run.generation.max_tokens)
        if usage.prompt_tokens_details is not None:
            run.hit_tokens = usage.prompt_tokens_details.cached_tokens or 0

    def _body(self, generation: Generation) -> bytes:
        fields: dict[str, Any] = {
            "model": self._model,
            "prompt": list(chain.from_iterable(generation.segments)),
            "max_tokens": generation.max_tokens,
            "temperature": generation.temperature,
            # The server's defaults come from the model's folder; what chatd writes into its replies must be true.
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop_token_ids": list(self._tokens.stop_ids),
            "logit_bias": {str(token_id): -100 for token_id in THINKING_IDS},
            "return_token_ids": True,
        }
        if generation.seed is not None:
            fields["seed"] = generation.seed
        if generation.grammar is not None:
            fields["structured_outputs"] = {"grammar": generation.grammar}
            fields["logprobs"] = 0
            fields["return_tokens_as_token_ids"] = True
        if generation.salt:
            fields["cache_salt"] = generation.salt
        return msgspec.json.encode(fields)

    # --- the server ---

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            raise EngineError("not started")
        return self._http

    async def _get(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of a small answer; raises _Failure."""
        try:
            async with (
                asyncio.timeout(SILENCE_S),
                self._client.stream("GET" if body is None else "POST", path, content=body) as response,
            ):
                chunks: list[bytes] = []
                read_bytes = 0
                async for chunk in response.aiter_raw():
                    chunks.append(chunk)
                    read_bytes += len(chunk)
                    if read_bytes > BODY_BYTES:
                        raise _Failure("too long")
                return response.status_code, b"".join(chunks)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Failure("connect", may_retry=True) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _Failure(type(error).__name__, may_retry=True) from error

    async def _reach(self) -> _Served:
        """The served model; waits for a server that is still starting, at most ``start_s``."""
        give_up_ms = self._clock.monotonic_ms() + self._start_s * 1000
        for attempt in range(1 << 16):
            try:
                status, body = await self._get("/v1/models")
                if status == httpx.codes.OK:
                    return self._served(body)
                failure = _Failure(f"http {status}", may_retry=status in _BUSY)
            except _Failure as error:
                failure = error
            wait_s = START_BACKOFF_S[min(attempt, len(START_BACKOFF_S) - 1)] * _dice.uniform(0.5, 1.0)
            if not failure.may_retry or self._clock.monotonic_ms() + wait_s * 1000 > give_up_ms:
                raise EngineError(f"the server's list of models cannot be had: {failure.error}") from failure
            await asyncio.sleep(wait_s)
        raise EngineError("the server cannot be reached")

    def _served(self, body: bytes) -> _Served:
        try:
            served = msgspec.json.decode(body, type=_Models).data
        except (msgspec.DecodeError, ValueError) as error:
            raise EngineError("the server's list of models is none") from error
        if not self._model and len(served) == 1:
            return served[0]
        for one in served:
            if one.id == self._model:
                return one
        names = ", ".join(one.id[:80] for one in served[:5])
        raise EngineError(f"the server does not serve {self._model or 'exactly one model'}; it serves {names}")

    async def _compare_tokens(self) -> None:
        """Equal ids on both sides, where the server can be asked: ids of another tokenizer are other words."""
        body = msgspec.json.encode({"model": self._model, "prompt": _PROBE_TEXT, "add_special_tokens": False})
        try:
            status, answer = await self._get("/tokenize", body)
            theirs = msgspec.json.decode(answer, type=_Tokenized).tokens if status == httpx.codes.OK else None
        except _Failure as failure:
            raise EngineError(f"the server's tokenizer cannot be asked: {failure.error}") from failure
        except (msgspec.DecodeError, ValueError):
            return  # something else under this path; the grammar's probe comes next
        if theirs is None:
            if status not in _ABSENT:
                raise EngineError(f"the server's tokenizer cannot be asked: http {status}")
            return
        if theirs != list(self._tokens.encode(_PROBE_TEXT)):
            raise EngineError("the server's tokenizer is not the one of the model folder given here")

    async def _try_grammar(self) -> None:
        """A first text, which the model would not write of itself: the whole path works, and grammars are kept to."""
        begin = self._tokens.bos_id
        segment = tuple(self._tokens.encode(_PROBE_TEXT)) if begin is None else (begin,)
        finished = await self._once(
            Generation(id="probe", segments=(segment,), grammar=_PROBE_GRAMMAR, max_tokens=_PROBE_TOKENS)
        )
        if finished.reason == "error":
            raise EngineError(f"the server does not write: {finished.error}")
        if finished.text.strip() not in _PROBE_ANSWERS:
            raise EngineError("the server does not keep to a grammar (structured_outputs of /v1/completions)")

    async def _watch(self) -> None:
        """Read the counters now and then; a server without them is left in peace."""
        while True:
            await asyncio.sleep(POLL_S)
            before = len(self._runs)
            try:
                status, body = await self._get("/metrics")
            except _Failure:
                continue
            if status in _ABSENT:
                return
            if status == httpx.codes.OK:
                self._look(read_metrics(body), max(before, len(self._runs)))

    def _look(self, values: Mapping[str, float], own: int) -> None:
        if all(name in values for name in _RUNNING):
            others = max(0, int(sum(values[name] for name in _RUNNING)) - own)
            self._others = (self._others[1], others)
        work = sum(values.get(name, 0.0) for name in _WORK)
        if self._work is not None and work != self._work:
            self._steps += 1
            self._stepped_ms = self._clock.monotonic_ms()
        self._work = work


def read_metrics(body: bytes) -> dict[str, float]:
    """The samples this engine uses, summed over their labels; empty where there are none or the page is no metrics."""
    wanted = frozenset((*_RUNNING, *_WORK))
    lines = [line for line in body.decode(errors="replace").splitlines() if line.partition("{")[0] in wanted]
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    except ValueError:
        return {}
    return values


async def _lines(response: httpx.Response, max_bytes: int) -> AsyncGenerator[list[bytes], None]:
    """Whole lines, as many as have come; bytes are only read as text when a line is whole."""
    rest = b""
    read_bytes = 0
    async for chunk in response.aiter_raw():
        read_bytes += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES or read_bytes > max_bytes:
            raise _Failure("too long")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _fault(error: object) -> str:
    """A server's error as a word: its kind and code where these are plain, and nothing of its message."""
    if not isinstance(error, dict):
        return "server error"
    kind, code = error.get("type"), error.get("code")
    words = [kind] if isinstance(kind, str) and _PLAIN.fullmatch(kind) else ["server error"]
    if isinstance(code, int):
        words.append(str(code))
    return " ".join(words)


def _address(url: str) -> tuple[str, str | None]:
    """Base URL and socket path. Raises ValueError."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError("a Unix socket is unix:/PATH")
        return "http://localhost", path
    if not url.startswith(("http://", "https://")):
        raise ValueError("a server's address is http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    return url.rstrip("/"), None
