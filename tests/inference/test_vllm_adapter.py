"""The adapter to vLLM against a server that misbehaves on purpose; the real server is in tests/vllm."""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.clock import SystemClock
from chatd.inference import vllm
from chatd.inference.engine import Delta, EngineError, EngineFull, Finished, Generation
from chatd.inference.vllm import VllmEngine, read_metrics

PATIENCE_S = 20.0
SECRET = "Maria da Conceição"
_FIRST = 200  # ids below are special, as in Gemma's vocabulary; a byte's id is the byte and this


class ByteTokens:
    """Bytes as ids."""

    stop_ids = (1, 106)
    special_ids = frozenset({0, 1, 2, 105, 106})
    bos_id = 2
    template_hash = "t"

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(byte + _FIRST for byte in text.encode())

    def stream(self) -> ByteStream:
        return ByteStream()


class ByteStream:
    """Whole characters only; what is left of one at the end is a replacement character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        # An id that is no byte would be one that must not get here.
        return self._decoder.decode(bytes((token_id - _FIRST,)))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


TOKENS = ByteTokens()


class Exchange:
    """One request at the fake server: what was asked, and what to answer with."""

    def __init__(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.body = body
        self._writer = writer
        self._is_begun = False

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self) -> None:
        """Status and headers of a stream."""
        self._is_begun = True
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        if not self._is_begun:
            await self.begin()
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def frame(self, value: object) -> None:
        await self.raw(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def ids(self, ids: Sequence[int], finish: str | None = None, **choice: Any) -> None:
        await self.frame(
            {"choices": [{"index": 0, "text": "", "token_ids": list(ids), "finish_reason": finish, **choice}]}
        )

    async def write(self, text: str, finish: str = "stop") -> None:
        """The text, a token a frame, and its end."""
        for token_id in TOKENS.encode(text):
            await self.ids((token_id,))
        await self.ids((1,) if finish == "stop" else (), finish)
        await self.end()

    async def end(self) -> None:
        await self.raw(b"data: [DONE]\n\n")
        await self.send(b"0\r\n\r\n")

    async def reply(self, status: int, body: bytes = b"{}") -> None:
        await self.send(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async def reply_json(self, value: object) -> None:
        await self.reply(200, json.dumps(value).encode())

    async def gone(self) -> None:
        """Until the other side has closed."""
        with suppress(OSError):
            await self._writer.wait_closed()


Answer = Callable[[Exchange], Awaitable[None]]


async def hang(exchange: Exchange) -> None:
    await exchange.gone()


class FakeServer:
    """Enough of vLLM's surface. ``answers``: for the next requests to ``/v1/completions``, then ``answer``.

    ``asked``: bodies of the completions that came, without the probe of the start. ``left``: set when a client has
    gone away in the middle of the last of them.
    """

    def __init__(self) -> None:
        self.models: object = {"data": [{"id": "medgemma", "max_model_len": 512}]}
        self.models_answers: list[Answer] = []
        self.tokenize: Answer = self._tokenize
        self.metrics: Answer = lambda exchange: exchange.reply(404)
        self.probe: Answer = lambda exchange: exchange.write("chatd-yes")
        self.answers: list[Answer] = []
        self.answer: Answer = lambda exchange: exchange.write("ok")
        self.asked: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.came = asyncio.Event()
        self.open_connections = 0
        self.url = ""

    async def _tokenize(self, exchange: Exchange) -> None:
        await exchange.reply_json({"tokens": TOKENS.encode(exchange.body["prompt"])})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = first.split(" ")[1]
                watching = asyncio.create_task(self._watch(reader, writer))
                try:
                    await self._route(Exchange(path, json.loads(body) if body else {}, writer))
                finally:
                    watching.cancel()
                    await asyncio.wait([watching])
                if writer.is_closing():
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():  # noqa: ASYNC110 - reading would eat the next request
            await asyncio.sleep(0.002)
        self.left.set()
        writer.close()

    async def _route(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/v1/models":
                await (
                    self.models_answers.pop(0)(exchange) if self.models_answers else exchange.reply_json(self.models)
                )
            case "/tokenize":
                await self.tokenize(exchange)
            case "/metrics":
                await self.metrics(exchange)
            case _ if "chatd-yes" in exchange.body.get("structured_outputs", {}).get("grammar", ""):
                await self.probe(exchange)
            case _:
                self.asked.append(exchange.body)
                self.left.clear()
                self.came.set()
                answer = self.answers.pop(0) if self.answers else self.answer
                await answer(exchange)


@asynccontextmanager
async def serving(fake: FakeServer) -> AsyncIterator[None]:
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        server.close()


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    async with serving(server):
        yield server


def made(fake: FakeServer, model: str = "medgemma", **options: Any) -> VllmEngine:
    return VllmEngine(
        options.pop("url", fake.url), TOKENS, model, **{"slots": 3, "reserved": 1, "start_s": 5.0, **options}
    )


@pytest.fixture
async def engine(fake: FakeServer) -> AsyncIterator[VllmEngine]:
    engine = made(fake)
    await engine.start()
    yield engine
    await engine.stop(0)


def asked(text: str = SECRET, **fields: Any) -> Generation:
    segments = ((2, *TOKENS.encode(text)), TOKENS.encode("?"))
    return Generation(**{"id": "g", "segments": segments, "max_tokens": 64, **fields})


async def collect(engine: VllmEngine, generation: Generation) -> tuple[list[str], Finished]:
    deltas: list[str] = []
    ends: list[Finished] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(generation)) as events:
        async for event in events:
            assert not ends
            if isinstance(event, Delta):
                assert event.text
                deltas.append(event.text)
            else:
                ends.append(event)
    assert len(ends) == 1
    assert "".join(deltas) == ends[0].text
    assert engine.capacity().active == 0
    return deltas, ends[0]


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - state of the engine, which has no event for a test
            await asyncio.sleep(0.002)


# --- what is asked and what comes back ---


async def test_text_is_made_from_ids_and_characters_are_never_split(fake: FakeServer, engine: VllmEngine) -> None:
    """A byte a token, most letters of two: each delta is whole characters, the numbers are the server's."""
    text = "Tensão 90/60 – às 07:45 🫀"

    async def answer(exchange: Exchange) -> None:
        for token_id in TOKENS.encode(text):
            await exchange.ids((token_id,))
        await exchange.ids((106,), "stop")
        await exchange.frame(
            {
                "choices": [],
                "usage": {"prompt_tokens": 23, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 16}},
            }
        )
        await exchange.end()

    fake.answer = answer
    deltas, finished = await collect(engine, asked())
    assert finished.text == text
    assert not any("�" in delta for delta in deltas)
    assert (finished.reason, finished.tokens_in, finished.tokens_out) == ("stop", 23, len(text.encode()) + 1)
    assert finished.prefix_hit_tokens == 16
    assert finished.ttft_ms is not None
    assert finished.error == ""


async def test_request_holds_all_ids_and_what_the_generation_says(fake: FakeServer, engine: VllmEngine) -> None:
    """Segments joined, the model's stop ids, no thinking, grammar, seed and salt; text of the prompt is never sent."""
    generation = asked(grammar="start: /a/", temperature=0.3, seed=7, salt="hospital", max_tokens=9)
    await collect(engine, generation)
    await collect(engine, asked())
    full, plain = fake.asked
    assert full["prompt"] == [*generation.segments[0], *generation.segments[1]]
    assert full["structured_outputs"] == {"grammar": "start: /a/"}
    assert (full["seed"], full["temperature"], full["cache_salt"], full["max_tokens"]) == (7, 0.3, "hospital", 9)
    assert full["model"] == "medgemma"
    assert full["logprobs"] == 0
    for body in (full, plain):
        assert body["stop_token_ids"] == [1, 106]
        assert body["logit_bias"] == {"100": -100, "101": -100}
        assert body["stream_options"] == {"include_usage": True}
        assert body["return_token_ids"] is True
    assert not {"structured_outputs", "seed", "cache_salt", "logprobs"} & set(plain)


async def test_character_that_is_cut_at_the_bound_is_left_out(fake: FakeServer, engine: VllmEngine) -> None:
    """Its first byte was the last token."""

    async def answer(exchange: Exchange) -> None:
        await exchange.ids(TOKENS.encode("não")[:2], "length")
        await exchange.end()

    fake.answer = answer
    _, finished = await collect(engine, asked())
    assert (finished.reason, finished.text, finished.tokens_out) == ("length", "n", 2)


async def test_special_and_thinking_tokens_never_become_text(fake: FakeServer, engine: VllmEngine) -> None:
    """A server that sends them all the same changes nothing in the text."""

    async def answer(exchange: Exchange) -> None:
        await exchange.ids((100, *TOKENS.encode("a"), 105, 101, *TOKENS.encode("b"), 2))
        await exchange.ids((106,), "stop")
        await exchange.end()

    fake.answer = answer
    assert (await collect(engine, asked()))[1].text == "ab"


async def test_choice_logprobs_leave_out_what_the_grammar_forced(fake: FakeServer, engine: VllmEngine) -> None:
    """A probability of one is no choice; a missing one is none either."""

    async def answer(exchange: Exchange) -> None:
        await exchange.ids(TOKENS.encode("abc"), logprobs={"token_logprobs": [0.0, -0.5, None]})
        await exchange.ids((1,), "stop", logprobs={"token_logprobs": [-1.25]})
        await exchange.end()

    fake.answer = answer
    assert (await collect(engine, asked(grammar="start: /abc/")))[1].choice_logprobs == (-0.5, -1.25)


async def test_text_of_a_server_without_ids_is_taken(fake: FakeServer, engine: VllmEngine) -> None:
    """Its characters cross packets: bytes are only read as text when their line is whole."""

    async def answer(exchange: Exchange) -> None:
        for piece in ("não há ", "alergias 🫀"):
            line = b"data: " + json.dumps({"choices": [{"text": piece}]}, ensure_ascii=False).encode() + b"\r\n\r\n"
            for at in range(0, len(line), 3):
                await exchange.raw(line[at : at + 3])
        await exchange.raw(b": a comment\n\n")
        await exchange.frame({"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 5}})
        await exchange.end()

    fake.answer = answer
    _, finished = await collect(engine, asked())
    assert (finished.text, finished.reason, finished.tokens_out) == ("não há alergias 🫀", "length", 5)


async def test_end_of_the_stream_without_done_is_an_end_when_the_reason_was_told(
    fake: FakeServer, engine: VllmEngine
) -> None:
    """What breaks after the last word costs nothing."""

    async def answer(exchange: Exchange) -> None:
        await exchange.ids(TOKENS.encode("ok"), "stop")
        exchange._writer.close()

    fake.answer = answer
    _, finished = await collect(engine, asked())
    assert (finished.reason, finished.text, len(fake.asked)) == ("stop", "ok", 1)


@settings(max_examples=30, deadline=None)
@given(text=st.text(min_size=1, max_size=30), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_packets_cut_anywhere_give_the_same_text(text: str, sizes: list[int]) -> None:
    """However the bytes of a response fall into packets, the text is the server's."""

    async def story() -> None:
        fake = FakeServer()
        frames = [{"choices": [{"text": "", "token_ids": [token_id]}]} for token_id in TOKENS.encode(text)]
        frames.append({"choices": [{"text": "", "token_ids": [1], "finish_reason": "stop"}]})
        data = b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"

        async def answer(exchange: Exchange) -> None:
            at, turn = 0, 0
            while at < len(data):
                size = sizes[turn % len(sizes)] * 7
                await exchange.raw(data[at : at + size])
                at, turn = at + size, turn + 1
            await exchange.send(b"0\r\n\r\n")

        fake.answer = answer
        async with serving(fake):
            engine = made(fake)
            await engine.start()
            _, finished = await collect(engine, asked(max_tokens=200))
            assert (finished.reason, finished.text) == ("stop", text)
            await engine.stop(0)

    asyncio.run(story())


# --- failures ---


async def _close(exchange: Exchange) -> None:
    exchange._writer.close()


async def _error_frame(exchange: Exchange) -> None:
    await exchange.ids(TOKENS.encode("a"))
    await exchange.frame(
        {"error": {"message": f"bad: {SECRET}", "type": "BadRequestError", "param": None, "code": 400}}
    )
    await exchange.end()


async def _odd_error_frame(exchange: Exchange) -> None:
    await exchange.frame({"error": f"bad: {SECRET}"})


async def _error_with_text_for_a_kind(exchange: Exchange) -> None:
    await exchange.frame({"error": {"type": SECRET, "code": SECRET}})


async def _cut(exchange: Exchange) -> None:
    await exchange.ids(TOKENS.encode("a"))
    exchange._writer.close()


async def _ended_early(exchange: Exchange) -> None:
    await exchange.ids(TOKENS.encode("a"))
    await exchange.end()


async def _garbage(exchange: Exchange) -> None:
    await exchange.raw(b'data: {"choices": [{"text": "' + SECRET.encode() + b"\n\n")


async def _wrong_types(exchange: Exchange) -> None:
    await exchange.frame({"choices": [{"text": 5}]})


async def _not_utf8(exchange: Exchange) -> None:
    await exchange.raw(b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n')


async def _no_choices(exchange: Exchange) -> None:
    await exchange.frame({"object": "text_completion"})


async def _huge_line(exchange: Exchange) -> None:
    for _ in range(40):
        await exchange.raw(b"x" * 65536)


async def _endless(exchange: Exchange) -> None:
    while True:
        await exchange.raw(b": still here\n" * 4096)


async def _aborted(exchange: Exchange) -> None:
    await exchange.ids(TOKENS.encode("a"), "abort")
    await exchange.end()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (_error_frame, "BadRequestError 400", "a"),
        (_odd_error_frame, "server error", ""),
        (_error_with_text_for_a_kind, "server error", ""),
        (_cut, "closed", "a"),
        (_ended_early, "cut", "a"),
        (_garbage, "garbage", ""),
        (_wrong_types, "garbage", ""),
        (_not_utf8, "garbage", ""),
        (_no_choices, "frame without choices", ""),
        (_huge_line, "too long", ""),
        (_endless, "too long", ""),
        (_aborted, "ended by the server", "a"),
        (lambda exchange: exchange.reply(400, SECRET.encode()), "http 400", ""),
        (lambda exchange: exchange.reply(404, b"{}"), "http 404", ""),
        (lambda exchange: exchange.reply(307, b""), "http 307", ""),
    ],
)
async def test_failure_ends_once_with_a_word_and_without_a_second_request(
    fake: FakeServer, engine: VllmEngine, caplog: pytest.LogCaptureFixture, answer: Answer, error: str, text: str
) -> None:
    """The text so far stays, the server's words do not come through, and nothing is asked again."""
    caplog.set_level(logging.DEBUG)
    fake.answer = answer
    _, finished = await collect(engine, asked())
    assert (finished.reason, finished.error, finished.text) == ("error", error, text)
    assert len(fake.asked) == 1
    assert not any(SECRET in record.getMessage() for record in caplog.records)
    fake.answer = lambda exchange: exchange.write("ok")
    assert (await collect(engine, asked()))[1].reason == "stop"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_close, "closed"),
        (lambda exchange: exchange.reply(503), "http 503"),
        (lambda exchange: exchange.reply(429), "http 429"),
    ],
)
async def test_request_of_which_nothing_came_is_tried_once_more(
    fake: FakeServer, engine: VllmEngine, answer: Answer, error: str
) -> None:
    """Once, and not twice."""
    fake.answers = [answer]
    _, finished = await collect(engine, asked())
    assert (finished.reason, finished.text, len(fake.asked)) == ("stop", "ok", 2)
    fake.asked.clear()
    fake.answers = [answer, answer, answer]
    _, finished = await collect(engine, asked())
    assert (finished.reason, finished.error, len(fake.asked)) == ("error", error, 2)


async def test_server_that_is_gone_ends_with_connect() -> None:
    """Nobody listens any more: an error each time, and the engine stays what it is."""
    gone = FakeServer()
    async with serving(gone):
        engine = made(gone)
        await engine.start()
        gone.answer = _close
        assert (await collect(engine, asked()))[1].error == "closed"
    for _ in range(2):
        _, finished = await collect(engine, asked())
        assert (finished.reason, finished.error) == ("error", "connect")
    await engine.stop(0)


async def test_silent_server_is_given_up(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No headers, or none after the first words: bounded by the silence between two bytes."""
    monkeypatch.setattr(vllm, "SILENCE_S", 0.2)
    engine = made(fake)
    await engine.start()

    async def stuck(exchange: Exchange) -> None:
        await exchange.ids(TOKENS.encode("a"))
        await hang(exchange)

    for answer, text in ((hang, ""), (stuck, "a")):
        fake.answer = answer
        _, finished = await collect(engine, asked())
        assert (finished.reason, finished.error, finished.text) == ("error", "timeout", text)
    await engine.stop(0)


# --- ends of ours ---


async def _first_then_hang(exchange: Exchange) -> None:
    await exchange.ids(TOKENS.encode("a"))
    await hang(exchange)


@pytest.mark.parametrize("answer", [hang, _first_then_hang])
async def test_cancel_closes_the_response_at_any_stage(fake: FakeServer, engine: VllmEngine, answer: Answer) -> None:
    """The server sees the connection go; the slot is free."""
    fake.answer = answer
    running = asyncio.create_task(collect(engine, asked()))
    await fake.came.wait()
    engine.cancel("other")
    assert engine.capacity().active == 1
    engine.cancel("g")
    engine.cancel("g")
    _, finished = await running
    assert finished.reason == "cancelled"
    async with asyncio.timeout(PATIENCE_S):
        await fake.left.wait()


async def test_no_connection_is_kept_for_another_request_to_close(fake: FakeServer, engine: VllmEngine) -> None:
    """After texts that ended and texts that were cancelled none is open, though the engine goes on.

    The pool closes kept ones within the next request; that being cancelled, what it had not closed stayed open.
    """
    for _ in range(3):
        await asyncio.gather(*(collect_any(engine, asked(id=f"g{n}")) for n in range(2)))
    fake.answer = _first_then_hang
    running = asyncio.create_task(collect(engine, asked()))
    await eventually(lambda: len(fake.asked) == 7)
    assert fake.open_connections >= 1
    engine.cancel("g")
    assert (await running)[1].reason == "cancelled"
    await eventually(lambda: fake.open_connections == 0)
    fake.answer = lambda exchange: exchange.write("ok")
    assert (await collect(engine, asked()))[1].text == "ok"


async def test_cancel_before_anything_was_sent_ends_with_cancelled(fake: FakeServer, engine: VllmEngine) -> None:
    """In the very step of the submission."""
    running = asyncio.create_task(collect(engine, asked()))
    await asyncio.sleep(0)
    engine.cancel("g")
    assert (await running)[1].reason == "cancelled"
    assert fake.asked == []


async def test_deadline_is_kept_without_the_server(fake: FakeServer, engine: VllmEngine) -> None:
    """A server that hangs does not matter; a deadline that is over asks nothing."""
    fake.answer = _first_then_hang
    now_ms = SystemClock().monotonic_ms()
    _, finished = await collect(engine, asked(deadline_ms=now_ms + 80))
    assert finished.reason == "deadline"
    count = len(fake.asked)
    _, finished = await collect(engine, asked(deadline_ms=now_ms - 1))
    assert (finished.reason, finished.text, len(fake.asked)) == ("deadline", "", count)


async def test_consumer_that_goes_away_closes_the_response(fake: FakeServer, engine: VllmEngine) -> None:
    """By ``aclose`` in mid-stream."""
    fake.answer = _first_then_hang
    events = engine.generate(asked())
    assert await anext(events) == Delta(text="a")
    await events.aclose()
    async with asyncio.timeout(PATIENCE_S):
        await fake.left.wait()
    await eventually(lambda: engine.capacity().active == 0)


async def test_slow_consumer_holds_nothing_up_and_gets_its_text_joined(fake: FakeServer, engine: VllmEngine) -> None:
    """The whole text was read while the consumer had taken one piece of it."""

    async def answer(exchange: Exchange) -> None:
        await exchange.ids(TOKENS.encode("a"))
        release = asyncio.Event()
        waiting.append(release)
        await release.wait()
        await exchange.write("bcd")

    waiting: list[asyncio.Event] = []
    fake.answer = answer
    events = engine.generate(asked())
    assert await anext(events) == Delta(text="a")
    waiting[0].set()
    await eventually(lambda: engine.capacity().active == 0)
    rest = [event async for event in events]
    assert rest[0] == Delta(text="bcd")
    assert isinstance(rest[1], Finished)
    assert len(rest) == 2


# --- slots, progress, warming ---


async def test_slots_are_refused_beyond_and_the_reserved_one_is_for_urgent(
    fake: FakeServer, engine: VllmEngine
) -> None:
    """Three slots of which one is reserved; a prompt that cannot fit is refused and takes none."""
    fake.answer = hang
    running = [asyncio.create_task(collect_any(engine, asked(id=f"g{n}"))) for n in range(2)]
    await eventually(lambda: engine.capacity().active == 2)
    with pytest.raises(EngineFull):
        await anext(engine.generate(asked()))
    running.append(asyncio.create_task(collect_any(engine, asked(id="stat", is_urgent=True))))
    await eventually(lambda: engine.capacity().active == 3)
    with pytest.raises(EngineFull):
        await anext(engine.generate(asked(is_urgent=True)))
    with pytest.raises(EngineError, match="running already"):
        await anext(engine.generate(asked(id="stat", is_urgent=True)))
    await engine.stop(0)
    assert {(await one).reason for one in running} == {"cancelled"}
    with pytest.raises(EngineError, match="not running"):
        await anext(engine.generate(asked()))


async def collect_any(engine: VllmEngine, generation: Generation) -> Finished:
    ends = [event async for event in engine.generate(generation) if isinstance(event, Finished)]
    assert len(ends) == 1
    return ends[0]


async def test_prompt_that_cannot_fit_is_refused(fake: FakeServer, engine: VllmEngine) -> None:
    """The server said 512 tokens; prompt and text together are counted, before anything is sent."""
    with pytest.raises(EngineError, match="513 tokens does not fit"):
        await anext(engine.generate(Generation(id="g", segments=((300,) * 513,), max_tokens=1)))
    with pytest.raises(EngineError):
        await anext(engine.generate(Generation(id="g", segments=((300,) * 512,), max_tokens=1)))
    await collect(engine, Generation(id="g", segments=((300,) * 511,), max_tokens=1))
    assert len(fake.asked) == 1


async def test_stop_lets_running_texts_end_within_the_drain(fake: FakeServer, engine: VllmEngine) -> None:
    """A text that ends in time ends as it would; nothing new is taken meanwhile."""
    release = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await release.wait()
        await exchange.write("ok")

    fake.answer = answer
    running = asyncio.create_task(collect(engine, asked()))
    await fake.came.wait()
    stopping = asyncio.create_task(engine.stop(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineError):
        await anext(engine.generate(asked(id="other")))
    release.set()
    assert (await running)[1].reason == "stop"
    await stopping
    await engine.stop(0)


async def test_warming_asks_once_for_a_beginning_and_salt(fake: FakeServer, engine: VllmEngine) -> None:
    """One token each; at the same time from two callers it is one request; a failure is told and not remembered."""
    shared = ((2, 300, 301), (302,))
    assert await asyncio.gather(engine.warm(shared, "a"), engine.warm(shared, "a")) == [4, 4]
    (body,) = fake.asked
    assert (body["prompt"], body["max_tokens"], body["cache_salt"]) == ([2, 300, 301, 302], 1, "a")
    await engine.warm(shared, "b")
    assert len(fake.asked) == 2
    fake.answers = [_garbage]
    with pytest.raises(EngineError, match="garbage"):
        await engine.warm(shared, "c")
    assert await engine.warm(shared, "c") == 4
    assert await engine.warm(()) == 0
    with pytest.raises(EngineError):
        await engine.warm(((300,) * 512,))
    assert engine.capacity().active == 0


PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="medgemma"}} {running}
vllm:num_requests_running{{engine="1",model_name="medgemma"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="medgemma"}} 0.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{{engine="0",model_name="medgemma"}} {work}
vllm:prompt_tokens_created{{engine="0",model_name="medgemma"}} 1.79e+09
vllm:generation_tokens_total{{engine="0",model_name="medgemma"}} 5.0
other_total 99.0
"""


async def test_metrics_tell_what_others_run_and_that_work_goes_on(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are not ours take slots off; counters that move are progress though no word has come."""
    monkeypatch.setattr(vllm, "POLL_S", 0.01)
    running, work = 0, 0

    async def metrics(exchange: Exchange) -> None:
        await exchange.reply(200, PAGE.format(running=float(running), work=float(work)).encode())

    fake.metrics = metrics
    fake.answer = hang
    engine = made(fake)
    await engine.start()
    running = 1
    await eventually(lambda: engine.capacity().active == 2)
    task = asyncio.create_task(collect_any(engine, asked(is_urgent=True)))
    await fake.came.wait()
    steps = engine.progress().steps
    work = 1000
    await eventually(lambda: engine.progress().steps > steps)
    running = 0
    await eventually(lambda: engine.capacity().active == 1)
    engine.cancel("g")
    await task
    assert engine.progress().age_ms == 0
    await engine.stop(0)


async def test_page_of_metrics_that_breaks_is_passed_over(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, wrong or refused for a while: the engine goes on, and reads the next one."""
    monkeypatch.setattr(vllm, "POLL_S", 0.01)
    looks = 0

    async def metrics(exchange: Exchange) -> None:
        nonlocal looks
        looks += 1
        match looks:
            case 1:
                await exchange.reply(500)
            case 2:
                await exchange.reply(200, b"vllm:num_requests_running{ what\n\xff\n")
            case 3:
                exchange._writer.close()
            case _:
                await exchange.reply(200, PAGE.format(running=1.0, work=2.0).encode())

    fake.metrics = metrics
    engine = made(fake)
    await engine.start()
    await eventually(lambda: engine.capacity().active == 2)
    assert (await collect_any(engine, asked(is_urgent=True))).reason == "stop"
    await engine.stop(0)


@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"vllm:num_requests_running{text}".encode())
    )
)
def test_any_page_of_metrics_can_be_read(page: bytes) -> None:
    """Total: values of the names asked for, or none."""
    assert set(read_metrics(page)) <= {"vllm:num_requests_running"}


def test_metrics_are_summed_over_their_labels() -> None:
    """Two engines behind one server are one to chatd."""
    assert read_metrics(PAGE.format(running=3.0, work=7.0).encode()) == {
        "vllm:num_requests_running": 6.0,
        "vllm:num_requests_waiting": 0.0,
        "vllm:prompt_tokens_total": 7.0,
        "vllm:generation_tokens_total": 5.0,
    }


# --- the start ---


async def test_start_names_the_model_and_its_room(fake: FakeServer, engine: VllmEngine) -> None:
    """What the server lists is what the replies will say."""
    info = engine.info
    assert (info.engine, info.model.id, info.model.template, info.context_tokens) == ("vllm", "medgemma", "t", 512)
    assert info.stop_ids == (1, 106)


async def test_start_takes_the_only_model_and_refuses_to_guess(fake: FakeServer) -> None:
    """An empty name means the one there is; a name that is not served is said."""
    engine = made(fake, "")
    with pytest.raises(EngineError):
        _ = engine.info
    await engine.start()
    assert engine.info.model.id == "medgemma"
    await engine.stop(0)
    with pytest.raises(EngineError, match="does not serve cardio; it serves medgemma"):
        await made(fake, "cardio").start()
    fake.models = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(EngineError, match="exactly one model; it serves a, b"):
        await made(fake, "").start()
    fake.models = {"models": []}
    with pytest.raises(EngineError, match="list of models is none"):
        await made(fake).start()


async def test_start_refuses_a_server_that_ignores_grammars(fake: FakeServer) -> None:
    """Ids of actions would come from nowhere; better no model than a free one."""
    fake.probe = lambda exchange: exchange.write("Sure! Here is")
    with pytest.raises(EngineError, match="grammar"):
        await made(fake).start()
    fake.probe = _error_frame
    with pytest.raises(EngineError, match="does not write: BadRequestError 400"):
        await made(fake).start()


async def test_start_refuses_another_tokenizer(fake: FakeServer) -> None:
    """Ids that mean other words there would be another patient's story; a server that cannot be asked is let pass."""
    fake.tokenize = lambda exchange: exchange.reply_json({"tokens": [300, 301]})
    with pytest.raises(EngineError, match="tokenizer is not the one"):
        await made(fake).start()
    fake.tokenize = lambda exchange: exchange.reply(500)
    with pytest.raises(EngineError, match="http 500"):
        await made(fake).start()
    fake.tokenize = lambda exchange: exchange.reply(404)
    engine = made(fake)
    await engine.start()
    await engine.stop(0)


async def test_start_waits_for_a_server_that_is_loading(fake: FakeServer) -> None:
    """Closed connections and 503 are waited out, within a bound; 401 is told at once."""
    fake.models_answers = [_close, lambda exchange: exchange.reply(503)]
    engine = made(fake)
    await engine.start()
    await engine.stop(0)
    fake.models_answers = [lambda exchange: exchange.reply(503)] * 9
    with pytest.raises(EngineError, match="http 503"):
        await made(fake, start_s=0.0).start()
    fake.models_answers = [lambda exchange: exchange.reply(401)]
    with pytest.raises(EngineError, match="http 401"):
        await made(fake, start_s=60.0).start()
    with pytest.raises(EngineError, match="connect"):
        await made(fake, url="http://127.0.0.1:9", start_s=0.0).start()


async def test_unix_socket_is_served_alike(tmp_path: Path) -> None:
    """The whole way over a socket in the file system."""
    fake = FakeServer()
    path = tmp_path / "v.sock"
    with pytest.raises(EngineError, match="connect"):
        await made(fake, url=f"unix:{path}", start_s=0.0).start()
    server = await asyncio.start_unix_server(fake.serve, path)
    engine = made(fake, url=f"unix:{path}")
    await engine.start()
    assert (await collect(engine, asked()))[1].text == "ok"
    await engine.stop(0)
    server.close()


@pytest.mark.parametrize("url", ["", "localhost:8000", "unix:relative", "ftp://x"])
def test_address_that_is_none_is_refused(url: str) -> None:
    """At once, when the engine is made."""
    with pytest.raises(ValueError, match="is"):
        VllmEngine(url, TOKENS, "")
