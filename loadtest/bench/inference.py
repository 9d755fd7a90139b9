"""Measures the model's half of an answer against what the engine's own library does with the same work.

Prints tables and writes ``out/bench/inference.json`` and ``inference.png``. Every figure is a ratio of two runs in this
one process or on this one machine, in CPU seconds where both sides compute, so that a busy machine spoils neither side
alone. Parts: the engine and the whole path (WebSocket, queue, worker, WebSocket) against ``mlx_lm.batch_generate``,
with and without the grammar; shared prompts against unshared ones; warm against cold; the longest silence of running
answers while long prompts arrive; a vLLM server through chatd against the same server by itself (where
``scripts/setup-vllm`` has made one).

Models are random and made here; everything runs on the loopback interface and stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from chatd.clock import SystemClock  # noqa: E402
from chatd.gateway.auth import mint  # noqa: E402
from chatd.inference import sections, tiny  # noqa: E402
from chatd.inference.engine import Delta, Finished, Generation  # noqa: E402
from chatd.inference.mlx import MlxEngine  # noqa: E402
from loadtest.bench.questions import usage  # noqa: E402
from tests.blas import restart  # noqa: E402
from tests.chat_client import ChatClient  # noqa: E402
from tests.server import Hospital, hospital  # noqa: E402
from tests.vllm.server import MODEL, PYTHON, serving  # noqa: E402

USERS = (1, 4, 8, 20)
PARTS = ("engine", "prompts", "path", "vllm")
ACTIONS = ("schedule_cath_lab", "order_troponin", "page_cardiology")


class Shape(NamedTuple):
    """How much is written and read at a size of model: a CPU takes a hundred times as long for the second one.

    ``prompt_tokens`` and ``answer_tokens`` of the engine's rounds; ``path_tokens`` of an answer through everything
    and ``budget_tokens`` of its prompt: whole records cost a CPU tens of seconds of prefill, which is no part of what
    is compared, and twenty of the larger model's would pass the deadline. ``sharing`` users of one beginning.
    """

    prompt_tokens: int
    answer_tokens: int
    path_tokens: int
    budget_tokens: int
    sharing: int
    rounds: int


SHAPES: Final[dict[Literal["1m", "100m"], Shape]] = {
    "1m": Shape(prompt_tokens=192, answer_tokens=256, path_tokens=96, budget_tokens=2_200, sharing=20, rounds=3),
    "100m": Shape(prompt_tokens=48, answer_tokens=48, path_tokens=32, budget_tokens=1_800, sharing=8, rounds=1),
}
#: The beginning that a department shares, in tokens, and what differs.
SHARED_TOKENS = 1_500
OWN_TOKENS = 64
#: A prompt that is long enough to stall others where it is not cut into steps.
LONG_TOKENS = 2_000
GIB = 1 << 30
#: No single wait is longer.
MOST_WAIT_S = 300.0
#: One step of the larger model takes this CPU seconds: beats wait for it as much as the canary does, and neither is a
#: sign of a dead worker here.
PATIENCE = {"CHATD_MODEL_DOWN_S": "120", "CHATD_JOB_LEASE_S": "60", "CHATD_JOB_BEAT_S": "1"}


def ids(count: int, seed: int, vocabulary: int) -> tuple[int, ...]:
    """Token ids of a prompt: no special ones, equal for equal seeds."""
    chance = random.Random(seed)
    return tuple(chance.randrange(300, vocabulary) for _ in range(count))


class Spent:
    """CPU seconds of this process, with all its threads, and wall seconds, within the block."""

    def __enter__(self) -> Spent:
        gc.collect()
        self.cpu_s, self.wall_s = -time.process_time(), -time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time()
        self.wall_s += time.perf_counter()


def raw(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    answer_tokens: int,
    caches: list[Any] | None = None,
) -> dict[str, float]:
    """The library alone: all prompts as one batch, behind what is in ``caches``."""
    from mlx_lm import batch_generate

    with Spent() as spent:
        done = batch_generate(
            model, tokenizer, [list(prompt) for prompt in prompts], prompt_caches=caches, max_tokens=answer_tokens
        )
    return {"tokens": float(done.stats.generation_tokens), "cpu_s": spent.cpu_s, "wall_s": spent.wall_s}


async def written(engine: MlxEngine, generation: Generation) -> tuple[Finished, float, list[float]]:
    """One text to its end: how it ended, seconds to the first word, and the moment of each delta."""
    begin = time.perf_counter()
    moments: list[float] = []
    finished: Finished | None = None
    async for event in engine.generate(generation):
        if isinstance(event, Delta):
            moments.append(time.perf_counter())
        else:
            finished = event
    if finished is None or finished.reason not in ("stop", "length"):
        raise SystemExit(f"a text ended with {finished.reason if finished else 'nothing'}")
    return finished, (moments[0] if moments else time.perf_counter()) - begin, moments


async def batch(engine: MlxEngine, generations: Sequence[Generation]) -> dict[str, float]:
    """All at once through the engine."""
    with Spent() as spent:
        done = await asyncio.gather(*(written(engine, generation) for generation in generations))
    return {
        "tokens": float(sum(finished.tokens_out for finished, _, _ in done)),
        "cpu_s": spent.cpu_s,
        "wall_s": spent.wall_s,
        "ttft_s": statistics.median(ttft for _, ttft, _ in done),
        "hit_tokens": float(sum(finished.prefix_hit_tokens for finished, _, _ in done)),
    }


def speed(figures: dict[str, float]) -> float:
    """Tokens per CPU second."""
    return figures["tokens"] / figures["cpu_s"]


async def throughput(
    folder: Path, shape: Shape, rounds: int, users: Sequence[int], tick: Callable[[], None]
) -> list[dict[str, Any]]:
    """The engine against the library, plain and under the grammar; the median of ``rounds`` alternating rounds."""
    from mlx_lm import load

    model, tokenizer = load(str(folder))[:2]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    engine = MlxEngine(folder, slots=max(users), reserved=0, prefix_cache_bytes=0, clock=SystemClock())
    await engine.start()
    grammar = sections.grammar(ACTIONS)
    rows = []
    try:
        for count in users:
            plain_ratios, grammar_ratios = [], []
            raw_speeds = []
            for turn in range(rounds + 1):
                prompts = [ids(shape.prompt_tokens, seed=turn * 1_000 + n, vocabulary=vocabulary) for n in range(count)]

                def generations(kind: str, prompts: Sequence[tuple[int, ...]] = prompts) -> list[Generation]:
                    return [
                        Generation(
                            id=f"{kind}-{n}",
                            segments=(prompt,),
                            grammar=grammar if kind == "grammar" else None,
                            max_tokens=shape.answer_tokens,
                        )
                        for n, prompt in enumerate(prompts)
                    ]

                library = raw(model, tokenizer, prompts, shape.answer_tokens)
                plain = await batch(engine, generations("plain"))
                held = await batch(engine, generations("grammar"))
                tick()
                if turn == 0:
                    continue  # fills caches of kernels and grammars
                raw_speeds.append(speed(library))
                plain_ratios.append(speed(plain) / speed(library))
                grammar_ratios.append(speed(held) / speed(library))
            rows.append(
                {
                    "users": count,
                    "raw_tokens_per_cpu_s": statistics.median(raw_speeds),
                    "plain": statistics.median(plain_ratios),
                    "grammar": statistics.median(grammar_ratios),
                }
            )
    finally:
        await engine.stop(0)
    return rows


async def prefixes(folder: Path, count: int) -> dict[str, float]:
    """``count`` questions of one department: prompts computed one by one, then shared cold, then shared warm."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shared = ids(SHARED_TOKENS, seed=1, vocabulary=vocabulary)
    own = [ids(OWN_TOKENS, seed=10 + n, vocabulary=vocabulary) for n in range(count)]

    def asked(kind: str) -> list[Generation]:
        return [
            Generation(id=f"{kind}-{n}", segments=(shared, part), max_tokens=1, salt="s") for n, part in enumerate(own)
        ]

    figures: dict[str, float] = {}
    plain = MlxEngine(folder, slots=count, reserved=0, prefix_cache_bytes=0, clock=SystemClock())
    await plain.start()
    await batch(plain, asked("first")[:1])
    unshared = await batch(plain, asked("unshared"))
    single = await batch(plain, asked("single")[:1])
    await plain.stop(0)
    engine = MlxEngine(folder, slots=count, reserved=0, prefix_cache_bytes=GIB, clock=SystemClock())
    await engine.start()
    await batch(engine, [Generation(id="first", segments=(own[0],), max_tokens=1, salt="other")])
    cold = await batch(engine, asked("cold"))
    warm = await batch(engine, asked("warm"))
    one = await batch(engine, asked("one")[:1])
    await engine.stop(0)
    figures["unshared_cpu_s"] = unshared["cpu_s"]
    figures["cold_ratio"] = cold["cpu_s"] / unshared["cpu_s"]
    figures["warm_ratio"] = warm["cpu_s"] / unshared["cpu_s"]
    figures["cold_ttft_ms"] = single["ttft_s"] * 1000
    figures["warm_ttft_ms"] = one["ttft_s"] * 1000
    figures["ttft_ratio"] = one["ttft_s"] / single["ttft_s"]
    figures["hit_share"] = warm["hit_tokens"] / (SHARED_TOKENS * count)
    return figures


async def gaps(folder: Path, streams: int, arrivals: int) -> dict[str, float]:
    """The longest silence of answers that are being written while long prompts arrive."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    engine = MlxEngine(folder, slots=streams + arrivals, reserved=0, prefix_cache_bytes=0, clock=SystemClock())
    await engine.start()
    running = [
        asyncio.create_task(
            written(
                engine,
                Generation(id=f"s{n}", segments=(ids(64, seed=n, vocabulary=vocabulary),), max_tokens=400),
            )
        )
        for n in range(streams)
    ]
    while engine.progress().steps < 60 and not all(each.done() for each in running):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    begin = time.perf_counter()
    late = [
        asyncio.create_task(
            written(
                engine,
                Generation(id=f"l{n}", segments=(ids(LONG_TOKENS, seed=90 + n, vocabulary=vocabulary),), max_tokens=2),
            )
        )
        for n in range(arrivals)
    ]
    arrived = await asyncio.gather(*late)
    end = time.perf_counter()
    done = await asyncio.gather(*running)
    await engine.stop(0)
    before, during = [], []
    for _, _, moments in done:
        for earlier, later in itertools.pairwise(moments):
            if later <= begin:
                before.append(later - earlier)
            elif earlier < end:
                during.append(later - earlier)
    return {
        "median_gap_before_ms": statistics.median(before) * 1000 if before else float("nan"),
        "longest_gap_during_ms": max(during) * 1000 if during else float("nan"),
        "one_long_prompt_ms": statistics.median(ttft for _, ttft, _ in arrived) * 1000,
        "longest_gap_to_long_prompts": max(during) / (end - begin) if during else float("nan"),
    }


# --- the whole path -----------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all that it has started, without the look itself."""
    with subprocess.Popen(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as look:
        listed, _ = look.communicate()
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for each in found:
        found += [child for child, parent in parents if parent == each and child != look.pid]
    return found


def spent_s(pids: Sequence[int]) -> float:
    """CPU seconds of processes so far."""
    return sum(usage(pid)[1] for pid in pids)


async def arrive(place: Hospital, number: int) -> ChatClient:
    """One doctor, connected."""
    user = f"dr.bench.{number}"
    token = mint(
        (place.data / "keys" / "jwt.key").read_text().strip().encode(),
        user_id=user,
        departments=("cardiology",),
        roles=("physician",),
        ttl_s=3600,
        now=datetime.now(UTC),
    )
    client = ChatClient(place.url, department="cardiology", user_id=user, token=token, wait_s=MOST_WAIT_S)
    await client.connect()
    return client


async def answered(client: ChatClient, msg_id: str) -> dict[str, Any]:
    """Ask one question about the demo's patient and take its answer."""
    await client.send(
        {"type": "user_message", "client_msg_id": msg_id, "content": f"Summarise {msg_id}", "patient_id": "7823"}
    )
    return await asyncio.wait_for(client.until("ai_response", client_msg_id=msg_id), MOST_WAIT_S)


async def whole_path(place: Hospital, users: int, turn: str, also: Sequence[int] = ()) -> dict[str, float]:
    """One question of each of ``users`` doctors at once, through everything.

    CPU is of all of chatd's processes, Redis too, and of ``also``; not of the phones, which are in this one.
    """
    clients = [await arrive(place, number) for number in range(users)]
    pids = [*family(place.up.process.pid), *also]
    begin, begin_s = spent_s(pids), time.perf_counter()
    answers = await asyncio.gather(*(answered(client, f"{turn}-{n}") for n, client in enumerate(clients)))
    wall_s, cpu_s = time.perf_counter() - begin_s, spent_s(pids) - begin
    await asyncio.gather(*(client.close() for client in clients))
    for answer in answers:
        if answer["model"] is None or answer["status"] not in ("completed", "incomplete", "degraded"):
            told = f"{answer['status']} of {users} at once after {wall_s:.0f} s"
            raise SystemExit(f"an answer without the model: {told}\n{place.up.log()[-2000:]}")
    timings = [answer["timing"] for answer in answers]
    return {
        "tokens": float(sum(timing["tokens_out"] for timing in timings)),
        "tokens_in": statistics.median(timing["tokens_in"] for timing in timings),
        "tokens_out": statistics.median(timing["tokens_out"] for timing in timings),
        "hit_tokens": statistics.median(timing["prefix_hit_tokens"] or 0 for timing in timings),
        "cpu_s": cpu_s,
        "wall_s": wall_s,
    }


async def path(
    folder: Path, shape: Shape, rounds: int, users: Sequence[int], tick: Callable[[], None]
) -> AsyncIterator[dict[str, Any]]:
    """Everything between two sockets against the library with prompts and answers of the same lengths.

    As it runs in a hospital, with the department's beginning at hand; the library gets a cache of the same length.
    """
    from mlx_lm import batch_generate, load

    model, tokenizer = load(str(folder))[:2]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    beginnings: dict[int, list[Any]] = {}
    env = {
        "CHATD_PREFIX_CACHE_BYTES": str(GIB),
        "CHATD_ANSWER_MAX_TOKENS": str(shape.path_tokens),
        "CHATD_PROMPT_BUDGET_TOKENS": str(shape.budget_tokens),
        **PATIENCE,
        "CHATD_MESSAGES_PER_MINUTE": "1000",
        "CHATD_ENGINE_SLOTS": str(max(users) + 1),
        "CHATD_ENGINE_RESERVED_SLOTS": "1",
    }
    with hospital("--engine", "mlx", "--model", str(folder), env=env) as place:
        await until_ready(place)
        await whole_path(place, 1, "warm")
        for count in users:
            ratios = []
            for turn in range(rounds + 1):
                through = await whole_path(place, count, f"p{count}t{turn}")
                hit_tokens = int(through["hit_tokens"])
                own_tokens = int(through["tokens_in"]) - hit_tokens
                own = [ids(own_tokens, seed=10 + n, vocabulary=vocabulary) for n in range(count)]
                if hit_tokens not in beginnings:
                    shared = [list(ids(hit_tokens, seed=1, vocabulary=vocabulary))]
                    made = batch_generate(model, tokenizer, shared, max_tokens=1, return_prompt_caches=True)
                    beginnings[hit_tokens] = made.caches
                library = raw(model, tokenizer, own, int(through["tokens_out"]), beginnings[hit_tokens] * count)
                tick()
                if turn:
                    ratios.append(speed(through) / speed(library))
            told = {name: through[name] for name in ("tokens_in", "hit_tokens", "tokens_out")}
            yield {"users": count, "path": statistics.median(ratios), **told}


# --- vLLM ---------------------------------------------------------------------------------------------------


async def asked_directly(client: httpx.AsyncClient, prompt: Sequence[int], grammar: str, max_tokens: int) -> int:
    """One streamed completion as any client of vLLM asks for it, its frames read; returns the tokens written."""
    body = {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "structured_outputs": {"grammar": grammar},
    }
    tokens, text = 0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                frame = json.loads(line[6:])
                text += "".join(choice["text"] for choice in frame["choices"])
                tokens = (frame.get("usage") or {}).get("completion_tokens", tokens)
    return int(tokens)


async def direct(
    url: str, pids: Sequence[int], prompts: Sequence[Sequence[int]], grammar: str, max_tokens: int
) -> dict[str, float]:
    """All prompts at once at the server itself; CPU is the server's alone."""
    transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=MOST_WAIT_S) as client:
        begin, begin_s = spent_s(pids), time.perf_counter()
        tokens = await asyncio.gather(*(asked_directly(client, prompt, grammar, max_tokens) for prompt in prompts))
        wall_s = time.perf_counter() - begin_s
    return {"tokens": float(sum(tokens)), "cpu_s": spent_s(pids) - begin, "wall_s": wall_s}


async def vllm_path(
    folder: Path, shape: Shape, rounds: int, users: Sequence[int], tick: Callable[[], None]
) -> AsyncIterator[dict[str, Any]]:
    """Everything between two sockets with a vLLM server behind it, against the server alone.

    Both write under a department's grammar; the prompts of the direct side are as long as chatd's, and as much of
    them is at hand in the server's cache.
    """
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    cached = {0}
    env = {
        "CHATD_ANSWER_MAX_TOKENS": str(shape.path_tokens),
        "CHATD_PROMPT_BUDGET_TOKENS": str(shape.budget_tokens),
        **PATIENCE,
        "CHATD_MESSAGES_PER_MINUTE": "1000",
        "CHATD_ENGINE_SLOTS": "20",
        "CHATD_ENGINE_RESERVED_SLOTS": "0",
    }
    with tempfile.TemporaryDirectory() as sockets, serving(folder, "bench", uds=Path(sockets) / "vllm.sock") as url:
        server = family(os.getpid())[1:]
        with hospital("--engine", "vllm", "--url", url, "--model", str(folder), env=env) as place:
            await until_ready(place)
            for count in users:
                wall_ratios, cpu_ratios = [], []
                for turn in range(rounds + 1):
                    through = await whole_path(place, count, f"v{count}t{turn}", server)
                    hit_tokens = int(through["hit_tokens"])
                    shared = ids(hit_tokens, seed=1, vocabulary=vocabulary)
                    own_tokens = int(through["tokens_in"]) - hit_tokens
                    own = [ids(own_tokens, seed=1_000 * turn + n, vocabulary=vocabulary) for n in range(count)]
                    grammar = sections.grammar(ACTIONS)
                    if len(shared) not in cached:
                        await direct(url, server, [shared], grammar, 1)  # the cache, as chatd's prompts have it
                        cached.add(len(shared))
                    alone = await direct(url, server, [shared + each for each in own], grammar, shape.path_tokens)
                    tick()
                    if turn:
                        wall_ratios.append(through["tokens"] / through["wall_s"] / (alone["tokens"] / alone["wall_s"]))
                        cpu_ratios.append(speed(through) / speed(alone))
                yield {
                    "users": count,
                    "wall": statistics.median(wall_ratios),
                    "cpu": statistics.median(cpu_ratios),
                    "tokens_in": through["tokens_in"],
                    "hit_tokens": through["hit_tokens"],
                    "tokens_out": through["tokens_out"],
                    "direct_tokens_per_s": alone["tokens"] / alone["wall_s"],
                }


def mode(url: str) -> str:
    """What the gateway says of its model."""
    with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as body:  # noqa: S310 - loopback
        told: str = json.load(body)["mode"]
        return told


async def until_ready(place: Hospital) -> None:
    """Wait until the model answers, as a phone would see it."""
    deadline = time.monotonic() + MOST_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if await asyncio.to_thread(mode, place.url) == "normal":
                return
        await asyncio.sleep(0.5)
    raise SystemExit(f"the model did not become ready: {place.up.log()[-2000:]}")


# --- the whole ----------------------------------------------------------------------------------------------

#: Goals of docs/performance.md: at least, or at most where marked.
GOALS: Final[dict[str, float]] = {
    "plain": 0.93,
    "grammar": 0.80,
    "path 1m": 0.80,
    "path 100m": 0.95,
    "vllm": 0.95,
    "warm_ratio": 0.15,
    "ttft_ratio": 0.25,
}


def show(figures: dict[str, Any]) -> None:
    """Print what there is."""
    console = Console()
    for size, part in figures["models"].items():
        if "throughput" in part or "path" in part:
            table = Table(title=f"{size} model: tokens per CPU second as a ratio to mlx_lm.batch_generate")
            for head in ("users", "library tok/CPU s", "engine", "engine, grammar", "whole path, grammar"):
                table.add_column(head, justify="right")
            for row in joined(part):
                raw_speed = f"{row['raw_tokens_per_cpu_s']:.0f}" if "plain" in row else "-"
                ratios = (f"{row[name]:.2f}" if name in row else "-" for name in ("plain", "grammar", "path"))
                table.add_row(str(row["users"]), raw_speed, *ratios)
            console.print(table)
        if "prefixes" in part:
            shared, silence = part["prefixes"], part["gaps"]
            console.print(
                f"{SHARED_TOKENS} shared tokens, {part['count']} users: CPU {shared['cold_ratio']:.3f} of unshared "
                f"cold, {shared['warm_ratio']:.3f} warm; first token {shared['warm_ttft_ms']:.0f} ms warm, "
                f"{shared['cold_ttft_ms']:.0f} ms cold: {shared['ttft_ratio']:.3f}"
            )
            console.print(
                f"while prompts of {LONG_TOKENS} tokens arrive: longest silence "
                f"{silence['longest_gap_during_ms']:.0f} ms, median before {silence['median_gap_before_ms']:.0f} ms; "
                f"a long prompt takes {silence['one_long_prompt_ms']:.0f} ms to its first token"
            )
        if "vllm" in part:
            table = Table(title=f"{size} model: vLLM through chatd as a ratio to vLLM alone, both with the grammar")
            for head in ("users", "alone tok/s", "tok/s", "tok per CPU s", "prompt tokens", "of them cached"):
                table.add_column(head, justify="right")
            for row in part["vllm"]:
                ratios = (f"{row[name]:.2f}" for name in ("wall", "cpu"))
                counts = (f"{row[name]:.0f}" for name in ("tokens_in", "hit_tokens"))
                table.add_row(str(row["users"]), f"{row['direct_tokens_per_s']:.0f}", *ratios, *counts)
            console.print(table)


def joined(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The engine's rows and the whole path's as one, by the number of users."""
    rows: dict[int, dict[str, Any]] = {}
    for row in (*part.get("throughput", ()), *part.get("path", ())):
        rows.setdefault(row["users"], {}).update(row)
    return [rows[count] for count in sorted(rows)]


def lines(
    axes: Any, rows: Sequence[dict[str, Any]], named: dict[str, str], goals: dict[str, float], title: str
) -> None:
    """Ratios over the number of users, with the goals as dotted lines."""
    from matplotlib import ticker

    users = [row["users"] for row in rows]
    for (name, label), marker in zip(named.items(), "os^v", strict=False):
        points = [(row["users"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    for (label, goal), at, side in zip(goals.items(), (users[-1], users[0]), ("right", "left"), strict=False):
        axes.axhline(goal, color="grey", linestyle=":", linewidth=1)
        axes.annotate(f"goal, {label} {goal:g}", (at, goal), fontsize=8, color="grey", va="bottom", ha=side)
    axes.set(xscale="log", xlabel="users at once", title=title, ylim=(0, None))
    axes.set_xticks(users)
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)


def bars(axes: Any, shared: dict[str, float], title: str) -> None:
    """What a shared beginning saves, with the goals as dotted lines."""
    axes.set_visible(True)
    names = {"cold_ratio": "CPU, cold", "warm_ratio": "CPU, warm", "ttft_ratio": "first token,\nwarm to cold"}
    drawn = axes.bar(list(names.values()), [shared[name] for name in names], color=("C7", "C0", "C1"))
    axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    for at, name in ((1, "warm_ratio"), (2, "ttft_ratio")):
        axes.hlines(GOALS[name], at - 0.4, at + 0.4, color="grey", linestyle=":")
        axes.annotate(
            f"goal {GOALS[name]:g}", (at + 0.4, GOALS[name]), fontsize=8, color="grey", ha="right", va="bottom"
        )
    axes.set(ylim=(0, 1), title=title)
    axes.set_ylabel("ratio to unshared")


def plot(figures: dict[str, Any], file: Path) -> None:
    """One row of panels per model: against mlx-lm, shared beginnings, and against vLLM where it was measured."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    models = figures["models"]
    columns = 3 if any(part.get("vllm") for part in models.values()) else 2
    canvas, panels = pyplot.subplots(
        len(models), columns, figsize=(5 * columns, 4.2 * len(models)), layout="constrained", squeeze=False
    )
    for row, (size, part) in zip(panels, models.items(), strict=True):
        for axes in row:
            axes.set_visible(False)
        if joined(part):
            row[0].set_visible(True)
            lines(
                row[0],
                joined(part),
                {"plain": "engine", "grammar": "engine, grammar", "path": "whole path, grammar"},
                {"engine": GOALS["plain"], "whole path": GOALS[f"path {size}"]},
                f"{size} model on mlx-lm",
            )
            row[0].set_ylabel("tokens per CPU second ÷ mlx_lm.batch_generate")
        if "prefixes" in part:
            bars(row[1], part["prefixes"], f"{size} model: {SHARED_TOKENS} tokens shared by {part['count']}")
        if "vllm" in part:
            row[2].set_visible(True)
            lines(
                row[2],
                part["vllm"],
                {"wall": "tokens per second", "cpu": "tokens per CPU second"},
                {"both": GOALS["vllm"]},
                f"{size} model on vLLM, grammar",
            )
            row[2].set_ylabel("through chatd ÷ vLLM alone")
    canvas.savefig(file, dpi=120)
    pyplot.close(canvas)


def keep(figures: dict[str, Any], out: Path) -> None:
    """Write what has been measured so far, and draw it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "inference.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(figures, out / "inference.png")


async def measure(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """All parts that were asked for; the figures of others stay what they were, for ``show`` and the plot."""
    known = out / "inference.json"
    figures: dict[str, Any] = {"models": {}}
    if (arguments.part or arguments.size) and known.exists():
        figures = json.loads(known.read_text())
    sizes = arguments.size or (["1m"] if arguments.short else list(SHAPES))
    users = (1, 8) if arguments.short else USERS
    parts = [part for part in PARTS if part in (arguments.part or PARTS)]
    if "vllm" in parts and not PYTHON.exists():
        print("no vLLM here (scripts/setup-vllm makes one): its part is left out", file=sys.stderr)
        parts.remove("vllm")
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            shape = SHAPES[size]
            rounds = 1 if arguments.short else arguments.rounds or shape.rounds
            folder = Path(place) / size
            tiny.make(folder, size)
            steps = {"engine": len(users), "prompts": 1 / (rounds + 1), "path": len(users), "vllm": len(users)}
            part: dict[str, Any] = figures["models"].setdefault(size, {})
            with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
                task = bar.add_task(f"{size} model", total=sum(steps[each] for each in parts) * (rounds + 1))

                def tick(bar: Progress = bar, task: Any = task) -> None:
                    bar.advance(task)

                if "engine" in parts:
                    part["throughput"] = await throughput(folder, shape, rounds, users, tick)
                    keep(figures, out)
                if "prompts" in parts:
                    part["count"] = 8 if arguments.short else shape.sharing
                    part["prefixes"] = await prefixes(folder, part["count"])
                    part["gaps"] = await gaps(folder, 4, 2)
                    tick()
                    keep(figures, out)
                for name, measured in (("path", path), ("vllm", vllm_path)):
                    if name in parts:
                        part[name] = []
                        async for row in measured(folder, shape, rounds, users, tick):
                            part[name].append(row)
                            keep(figures, out)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = ", ".join(f"{shape.rounds} for {size}" for size, shape in SHAPES.items())
    parser.add_argument("--rounds", type=int, help=f"alternating rounds of each figure (default: {told})")
    parser.add_argument("--short", action="store_true", help="the tiny model, 1 and 8 users, one round")
    parser.add_argument("--size", action="append", choices=SHAPES, help="only this model; may be given again")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given again")
    arguments = parser.parse_args()
    if arguments.rounds is not None and not 1 <= arguments.rounds <= 20:
        parser.error("--rounds is 1 to 20")
    restart(sys.orig_argv[1:])
    # Ended from outside, what was started here ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = ROOT / "out" / "bench"
    show(asyncio.run(measure(arguments, out)))
    print(f"wrote {out / 'inference.json'} and inference.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
