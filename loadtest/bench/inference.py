"""Measures the model's half of an answer against what the engine's own library does with the same work.

Prints tables and writes ``out/bench/inference.json`` and ``inference.png``. Every figure is a ratio of two runs in this
one process or on this one machine, in CPU seconds where both sides compute, so that a busy machine spoils neither side
alone. Parts: the engine and the whole path (WebSocket, queue, worker, WebSocket) against ``mlx_lm.batch_generate``,
with and without the grammar; shared prompts against unshared ones; warm against cold; the longest silence of running
answers while long prompts arrive.

Models are random and made here; everything runs on the loopback interface and stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from tests.chat_client import ChatClient  # noqa: E402
from tests.server import Hospital, hospital  # noqa: E402

USERS = (1, 4, 8, 20)
ACTIONS = ("schedule_cath_lab", "order_troponin", "page_cardiology")
#: Prompts of the throughput rounds, in tokens; the answers' bound.
PROMPT_TOKENS = 192
ANSWER_TOKENS = 96
#: The beginning that a department shares, in tokens, and what differs.
SHARED_TOKENS = 1_500
OWN_TOKENS = 64
#: A prompt that is long enough to stall others where it is not cut into steps.
LONG_TOKENS = 2_000
GIB = 1 << 30
#: No single wait is longer.
MOST_WAIT_S = 300.0


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
    model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], answer_tokens: int = ANSWER_TOKENS
) -> dict[str, float]:
    """The library alone: all prompts as one batch."""
    from mlx_lm import batch_generate

    with Spent() as spent:
        done = batch_generate(
            model, tokenizer, [list(prompt) for prompt in prompts], max_tokens=answer_tokens, verbose=False
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


async def throughput(folder: Path, rounds: int, users: Sequence[int], tick: Callable[[], None]) -> list[dict[str, Any]]:
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
                prompts = [ids(PROMPT_TOKENS, seed=turn * 1_000 + n, vocabulary=vocabulary) for n in range(count)]

                def generations(kind: str, prompts: Sequence[tuple[int, ...]] = prompts) -> list[Generation]:
                    return [
                        Generation(
                            id=f"{kind}-{n}",
                            segments=(prompt,),
                            grammar=grammar if kind == "grammar" else None,
                            max_tokens=ANSWER_TOKENS,
                        )
                        for n, prompt in enumerate(prompts)
                    ]

                library = raw(model, tokenizer, prompts)
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
    """A process and all that it has started."""
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for each in found:
        found += [child for child, parent in parents if parent == each]
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


async def whole_path(place: Hospital, users: int, turn: str) -> dict[str, float]:
    """One question of each of ``users`` doctors at once, through everything."""
    clients = [await arrive(place, number) for number in range(users)]
    pids = family(place.up.process.pid)
    begin = spent_s(pids)
    answers = await asyncio.gather(*(answered(client, f"{turn}-{n}") for n, client in enumerate(clients)))
    cpu_s = spent_s(pids) - begin
    await asyncio.gather(*(client.close() for client in clients))
    for answer in answers:
        if answer["model"] is None or answer["status"] not in ("completed", "incomplete", "degraded"):
            raise SystemExit(f"an answer without the model: {answer['status']}")
    timings = [answer["timing"] for answer in answers]
    return {
        "tokens": float(sum(timing["tokens_out"] for timing in timings)),
        "tokens_in": statistics.median(timing["tokens_in"] for timing in timings),
        "tokens_out": statistics.median(timing["tokens_out"] for timing in timings),
        "cpu_s": cpu_s,
    }


async def path(folder: Path, rounds: int, users: Sequence[int], tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Everything between two sockets against the library with prompts and answers of the same lengths.

    Once without the store of shared beginnings, so that both sides do the same work, and once with it, as it runs.
    """
    from mlx_lm import load

    model, tokenizer = load(str(folder))[:2]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rows: dict[int, dict[str, Any]] = {count: {"users": count} for count in users}
    for name, cache_bytes in (("path", 1), ("path_shared", GIB)):
        env = {
            "CHATD_PREFIX_CACHE_BYTES": str(cache_bytes),
            "CHATD_ANSWER_MAX_TOKENS": str(ANSWER_TOKENS),
            # Whole records cost a CPU tens of seconds of prefill, which is no part of what is compared.
            "CHATD_PROMPT_BUDGET_TOKENS": "2200",
            "CHATD_MESSAGES_PER_MINUTE": "1000",
            "CHATD_ENGINE_SLOTS": str(max(users) + 1),
            "CHATD_ENGINE_RESERVED_SLOTS": "1",
        }
        with hospital("--engine", "mlx", "--model", str(folder), env=env) as place:
            await until_ready(place)
            for count in users:
                ratios = []
                for turn in range(rounds + 1):
                    through = await whole_path(place, count, f"{name}{count}t{turn}")
                    prompts = [ids(int(through["tokens_in"]), seed=n, vocabulary=vocabulary) for n in range(count)]
                    library = raw(model, tokenizer, prompts, int(through["tokens_out"]))
                    tick()
                    if turn:
                        ratios.append(speed(through) / speed(library))
                rows[count][name] = statistics.median(ratios)
                rows[count]["tokens_in"] = through["tokens_in"]
    return list(rows.values())


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
GOALS = {"plain": 0.93, "grammar": 0.80, "path": 0.80, "path_100m": 0.95, "warm_ratio": 0.15, "ttft_ratio": 0.25}


def show(figures: dict[str, Any]) -> None:
    console = Console()
    for size, part in figures["models"].items():
        table = Table(title=f"{size} model: tokens per CPU second as a ratio to mlx_lm.batch_generate")
        heads = ("users", "library tok/CPU s", "engine", "engine, grammar", "whole path", "whole path, shared")
        for head in heads:
            table.add_column(head, justify="right")
        paths = {row["users"]: row for row in part.get("path", [])}
        for row in part["throughput"]:
            through = paths.get(row["users"], {})
            table.add_row(
                str(row["users"]),
                f"{row['raw_tokens_per_cpu_s']:.0f}",
                f"{row['plain']:.2f}",
                f"{row['grammar']:.2f}",
                *(f"{through[name]:.2f}" if name in through else "-" for name in ("path", "path_shared")),
            )
        console.print(table)
        shared, silence = part["prefixes"], part["gaps"]
        console.print(
            f"{SHARED_TOKENS} shared tokens, {part['count']} users: CPU {shared['cold_ratio']:.3f} of unshared cold, "
            f"{shared['warm_ratio']:.3f} warm; first token {shared['warm_ttft_ms']:.0f} ms warm, "
            f"{shared['cold_ttft_ms']:.0f} ms cold: {shared['ttft_ratio']:.3f}"
        )
        console.print(
            f"while prompts of {LONG_TOKENS} tokens arrive: longest silence {silence['longest_gap_during_ms']:.0f} ms, "
            f"median before {silence['median_gap_before_ms']:.0f} ms; a long prompt takes "
            f"{silence['one_long_prompt_ms']:.0f} ms to its first token"
        )


def plot(figures: dict[str, Any], file: Path) -> None:
    """Ratios over the number of users, one panel per model, with the goals as dotted lines."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    models = figures["models"]
    canvas, panels = pyplot.subplots(
        1, len(models), figsize=(5.5 * len(models), 4.5), layout="constrained", squeeze=False, sharey=True
    )
    for axes, (size, part) in zip(panels[0], models.items(), strict=True):
        users = [row["users"] for row in part["throughput"]]
        axes.plot(users, [row["plain"] for row in part["throughput"]], marker="o", label="engine")
        axes.plot(users, [row["grammar"] for row in part["throughput"]], marker="s", label="engine, grammar")
        if part.get("path"):
            axes.plot(users, [row["path"] for row in part["path"]], marker="^", label="whole path, grammar")
        axes.axhline(1.0, color="black", linewidth=0.8)
        for name in ("plain", "grammar"):
            axes.axhline(GOALS[name], color="grey", linestyle=":", linewidth=1)
            axes.annotate(
                f"goal {name} {GOALS[name]:g}", (users[-1], GOALS[name]), fontsize=8, color="grey", ha="right"
            )
        axes.set(xscale="log", xlabel="users at once", title=f"{size} model, CPU", ylim=(0, 1.3))
        axes.set_xticks(users)
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    panels[0][0].set_ylabel("tokens per CPU second ÷ mlx_lm.batch_generate")
    canvas.savefig(file, dpi=120)
    pyplot.close(canvas)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"models": {}}
    sizes = ("1m",) if arguments.short else ("1m", "100m")
    users = (1, 8) if arguments.short else USERS
    rounds = 1 if arguments.short else arguments.rounds
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            folder = Path(place) / size
            tiny.make(folder, size)
            steps = len(users) * (rounds + 1)
            with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
                task = bar.add_task(f"{size} model", total=steps * 3 + 2)

                def tick(bar: Progress = bar, task: Any = task) -> None:
                    bar.advance(task)

                part: dict[str, Any] = {"count": 8 if size == "100m" or arguments.short else 20}
                part["throughput"] = await throughput(folder, rounds, users, tick)
                part["prefixes"] = await prefixes(folder, part["count"])
                tick()
                part["gaps"] = await gaps(folder, 4, 2)
                tick()
                part["path"] = await path(folder, rounds, users, tick)
            figures["models"][size] = part
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each figure (default: 3)")
    parser.add_argument("--short", action="store_true", help="the tiny model, 1 and 8 users, one round")
    arguments = parser.parse_args()
    arguments.rounds = max(1, min(arguments.rounds, 20))
    figures = asyncio.run(measure(arguments))
    show(figures)
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "inference.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(figures, out / "inference.png")
    print(f"wrote {out / 'inference.json'} and inference.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
