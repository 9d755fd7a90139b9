"""Measures one gateway under the original design's worst rate: every doctor asks 10 questions a minute.

Prints a table and writes ``out/bench/questions.json`` and ``questions.png``: send to accepted, to facts and to the
answer (p50, p99), resident memory per idle connection, CPU per question. Latency counts from the moment a question
was due, not from when the client got round to sending it, so a stalled server cannot hide its queue.

Everything runs on this machine, on the loopback interface, and stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from chatd.gateway.auth import mint  # noqa: E402
from tests.server import Hospital, hospital  # noqa: E402

QUESTIONS = (
    "Analyze João Silva's ECG results",
    "What is the last potassium?",
    "Allergies?",
    "Quais são os medicamentos?",
    "Summarise the case",
)
STEPS = ("accepted", "facts", "ai_response")
#: No run is longer, whatever is asked for.
MOST_SECONDS = 600


def gateway_pid(up_pid: int) -> int:
    """The process id of the gateway under a ``chatd up``."""
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, parent, command = line.split(None, 2)
        if int(parent) == up_pid and "-m chatd serve" in command:
            return int(pid)
    raise SystemExit("the gateway of chatd up was not found")


def usage(pid: int) -> tuple[float, float]:
    """Resident memory in KiB and CPU seconds of a process."""
    shown = subprocess.run(["ps", "-o", "rss=,cputimes=", "-p", str(pid)], capture_output=True, text=True, check=True)
    rss_kib, cpu_s = shown.stdout.split()
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        # Hundredths of a second instead of whole ones.
        fields = stat.read_text().rpartition(")")[2].split()
        return float(rss_kib), (int(fields[11]) + int(fields[12])) / 100
    return float(rss_kib), float(cpu_s)


class Doctor:
    """One doctor: a connection, a reader, and the times of each question."""

    def __init__(self, number: int, socket: ClientConnection) -> None:
        self.number = number
        self.socket = socket
        self.due: dict[str, float] = {}
        self.took_ms: dict[str, list[float]] = {step: [] for step in STEPS}
        self.errors = 0

    async def read(self) -> None:
        decode = msgspec.json.Decoder().decode
        async for message in self.socket:
            frame: dict[str, Any] = decode(message)
            due = self.due.get(frame.get("client_msg_id") or "")
            if frame["type"] == "error":
                self.errors += 1
            elif due is not None and frame["type"] in STEPS:
                self.took_ms[frame["type"]].append((time.perf_counter() - due) * 1000)

    async def ask(self, begin: float, seconds: float, per_minute: float) -> None:
        """Ask at fixed moments from a random start; a late sender sends late and is counted as late."""
        chance = random.Random(self.number)
        every = 60 / per_minute
        due = begin + chance.random() * every
        count = 0
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            msg_id = f"d{self.number}-{count}"
            self.due[msg_id] = due
            content = QUESTIONS[count % len(QUESTIONS)]
            await self.socket.send(
                json.dumps({"type": "user_message", "client_msg_id": msg_id, "content": content, "patient_id": "7823"})
            )
            count += 1
            due += every


async def arrive(place: Hospital, number: int) -> Doctor:
    """Connect one doctor and take the welcome."""
    user = f"dr.bench.{number}"
    token = mint(
        (place.data / "keys" / "jwt.key").read_text().strip().encode(),
        user_id=user,
        departments=("cardiology",),
        roles=("physician",),
        ttl_s=3600,
        now=datetime.now(UTC),
    )
    url = f"{place.url.replace('http', 'ws', 1)}/chat/cardiology/{user}"
    socket = await connect(url, subprotocols=["chatd.v1"], compression=None, ping_interval=None)  # type: ignore[list-item]
    await socket.send(json.dumps({"type": "hello", "token": token}))
    for expected in ("welcome", "snapshot"):
        frame = json.loads(await socket.recv())
        if frame["type"] != expected:
            raise SystemExit(f"expected {expected}, got {frame}")
    return Doctor(number, socket)


async def measure(place: Hospital, connections: int, seconds: float, per_minute: float) -> dict[str, Any]:
    """Connect, rest, ask; returns the figures."""
    pid = gateway_pid(place.up.process.pid)
    # The first questions fill the caches of every process; they are not what is measured.
    warm = await arrive(place, 1_000_000)
    reading = asyncio.create_task(warm.read())
    await warm.ask(time.perf_counter(), 2, 150)
    await asyncio.sleep(1)
    reading.cancel()
    await warm.socket.close()
    await asyncio.sleep(1)
    rss_before, cpu_before = usage(pid)
    doctors = [await arrive(place, number) for number in range(connections)]
    await asyncio.sleep(2)
    rss_idle, cpu_idle = usage(pid)
    readers = [asyncio.create_task(doctor.read()) for doctor in doctors]
    with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("questions", total=seconds)
        begin = time.perf_counter()
        asking = [asyncio.create_task(doctor.ask(begin, seconds, per_minute)) for doctor in doctors]
        while not all(each.done() for each in asking):
            await asyncio.sleep(0.5)
            bar.update(task, completed=time.perf_counter() - begin)
    await asyncio.gather(*asking)
    await asyncio.sleep(2)
    rss_after, cpu_after = usage(pid)
    asked = sum(len(doctor.due) for doctor in doctors)
    took = {step: sorted(ms for doctor in doctors for ms in doctor.took_ms[step]) for step in STEPS}
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*(doctor.socket.close() for doctor in doctors), return_exceptions=True)
    return {
        "connections": connections,
        "seconds": seconds,
        "per_minute": per_minute,
        "asked": asked,
        "errors": sum(doctor.errors for doctor in doctors),
        "unanswered": asked - len(took["ai_response"]),
        "handshake_cpu_ms": (cpu_idle - cpu_before) * 1000 / connections,
        "rss_kib_per_idle_connection": (rss_idle - rss_before) / connections,
        "rss_mib_after": rss_after / 1024,
        "cpu_ms_per_question": (cpu_after - cpu_idle) * 1000 / max(1, asked),
        "took_ms": took,
    }


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie; nan when there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['connections']} doctors, {figures['per_minute']:g} questions a minute each")
    for column in ("from due to", "p50 ms", "p90 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if column == "from due to" else "right")
    for step in STEPS:
        values = figures["took_ms"][step]
        table.add_row(step, *(f"{quantile(values, q):.1f}" for q in (0.5, 0.9, 0.99, 1.0)))
    console = Console()
    console.print(table)
    console.print(f"questions {figures['asked']}, unanswered {figures['unanswered']}, errors {figures['errors']}")
    console.print(f"CPU per question {figures['cpu_ms_per_question']:.2f} ms, mean of the gateway process")
    console.print(f"CPU per handshake {figures['handshake_cpu_ms']:.2f} ms (token checked, session opened)")
    console.print(f"RSS per idle connection {figures['rss_kib_per_idle_connection']:.1f} KiB")


def plot(figures: dict[str, Any], path: Path) -> None:
    """The share of questions answered within a time, for each step."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for step in STEPS:
        values = figures["took_ms"][step]
        axes.step(values, [(n + 1) / len(values) for n in range(len(values))], where="post", label=step)
    for goal_ms, name in ((20, "goal accepted p99"), (50, "goal facts p99")):
        axes.axvline(goal_ms, color="grey", linestyle=":", linewidth=1)
        axes.annotate(name, (goal_ms, 0.02), rotation=90, fontsize=8, ha="right", va="bottom", color="grey")
    axes.set(
        xscale="log",
        xlabel="ms from the moment a question was due",
        ylabel="share of questions",
        title=f"{figures['connections']} doctors, {figures['per_minute']:g} questions a minute each, one gateway",
        ylim=(0, 1.01),
    )
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--per-minute", type=float, default=10, help="questions a minute and doctor (default: 10)")
    arguments = parser.parse_args()
    seconds = min(arguments.seconds, MOST_SECONDS)
    env = {
        "CHATD_MAX_CONNECTIONS": str(arguments.connections + 10),
        # The limit itself would refuse a late question that meets its successor.
        "CHATD_MESSAGES_PER_MINUTE": "1000",
    }
    with hospital(env=env) as place:
        figures = asyncio.run(measure(place, arguments.connections, seconds, arguments.per_minute))
    show(figures)
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    summary = {name: value for name, value in figures.items() if name != "took_ms"}
    summary["p50_ms"] = {step: statistics.median(figures["took_ms"][step]) for step in STEPS}
    summary["p99_ms"] = {step: quantile(figures["took_ms"][step], 0.99) for step in STEPS}
    (out / "questions.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot(figures, out / "questions.png")
    print(f"wrote {out / 'questions.json'} and questions.png")
    return 1 if figures["errors"] or figures["unanswered"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
