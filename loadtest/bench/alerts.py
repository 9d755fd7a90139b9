"""Measures alerts beside answers: how soon an alert is on every phone while answers stream, and whether they stutter.

20 doctors ask without a pause, so that 20 answers are being written all the time. Beside them 200 phones of the same
department are connected. Rounds without and with alerts alternate; in the latter alerts come at a fixed rate, each
raised by another phone, told as delivered by all of them, accepted by one and then done, all of it through the ledger.
Prints a table and writes ``out/bench/alerts.json`` and ``alerts.png``: raise to delivered over all phones and to the
last phone of each alert (p50, p99), and the gaps between one answer's pieces of text without and with the alerts.

A raise counts from the moment it was due, so a client or a server that falls behind cannot hide it. ``--engine mlx``
writes with a small random model instead of the scripted engine, which says fixed lines at 50 tokens a second.
Everything runs on this machine, on the loopback interface, and stops by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from loadtest.bench.fanout import Chatd, Phone, quantile  # noqa: E402
from loadtest.bench.questions import gateway_pid  # noqa: E402
from tests.blas import restart  # noqa: E402
from tests.http_call import call  # noqa: E402
from tests.server import Hospital, hospital  # noqa: E402

GOAL_MS = 300.0
#: The 99th percentile of the gaps with alerts to that without.
GOAL_RATIO = 1.2
#: At the beginning of each round nothing is counted: what the round before has left goes first.
SETTLE_S = 1.5
#: No single wait is longer.
WAIT_S = 60.0
READY_S = 180.0
MOST_SECONDS = 60.0


class Frame(msgspec.Struct):
    """What is read of a frame."""

    type: str
    response_id: str | None = None
    alert_id: str | None = None
    event: str = ""
    by: str = ""
    content: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(Frame).decode


class Ward:
    """All phones and doctors, read by one loop."""

    def __init__(self, server: Chatd, phones: int, doctors: int) -> None:
        self._poll = select.epoll()
        self._reader: dict[int, tuple[Phone, Callable[[Phone, Frame, float], None]]] = {}
        self._last: dict[str, float] = {}
        self._due: dict[int, float] = {}
        self._missing: dict[int, int] = {}
        self._closer: dict[str, Phone] = {}
        self._count = itertools.count()
        self.is_counting = False
        self.gaps_ms: list[float] = []
        self.all_ms: list[float] = []
        self.last_ms: list[float] = []
        self.raised = self.done = self.answers = 0
        self.errors: list[str] = []
        self.doctors = [self._enter(server, 10_000 + number, self._doctor) for number in range(doctors)]
        self.phones = [self._enter(server, number, self._phone) for number in range(phones)]

    def _enter(self, server: Chatd, number: int, read: Callable[[Phone, Frame, float], None]) -> Phone:
        phone = server.subscribe(number)
        phone.socket.setblocking(False)
        self._reader[phone.socket.fileno()] = (phone, read)
        self._poll.register(phone.socket.fileno(), select.EPOLLIN)
        if number % 10 == 9:
            self.read(0)
        return phone

    def read(self, wait_s: float) -> None:
        """One turn: whatever has come within ``wait_s``."""
        for fd, _ in self._poll.poll(wait_s, 4096):
            phone, read = self._reader[fd]
            try:
                data = phone.socket.recv(1 << 18)
            except BlockingIOError:
                continue
            if not data:
                raise SystemExit("a phone was cut off")
            now = time.perf_counter()
            for message in phone.messages(data):
                read(phone, _decode(message), now)

    def read_until(self, moment: float) -> None:
        """Turns until ``moment``."""
        while (left := moment - time.perf_counter()) > 0:
            self.read(left)

    # --- doctors ---

    def ask(self, doctor: Phone) -> None:
        n = next(self._count)
        question = {
            "type": "user_message",
            "client_msg_id": f"q-{n}",
            "content": f"Summarise the case, {n}",
            "patient_id": "7823",
        }
        doctor.send(json.dumps(question).encode())

    def _doctor(self, phone: Phone, frame: Frame, now: float) -> None:
        if frame.type == "ai_delta" and frame.response_id is not None:
            before = self._last.get(frame.response_id)
            if before is not None and self.is_counting:
                self.gaps_ms.append((now - before) * 1000)
            self._last[frame.response_id] = now
        elif frame.type == "ai_response":
            self._last.pop(frame.response_id or "", None)
            self.answers += 1
            self.ask(phone)
        elif frame.type == "error":
            self.errors.append(f"a question: {frame.code}")
            self.ask(phone)

    @property
    def streams(self) -> int:
        """Answers of which text has come and the end has not."""
        return len(self._last)

    # --- phones ---

    def raise_alert(self, due: float) -> None:
        n = self.raised
        self.raised += 1
        self._due[n], self._missing[n] = due, len(self.phones)
        alert = {
            "type": "alert_raise",
            "client_msg_id": f"a-{n}",
            "to": {"department": "cardiology"},
            "priority": "critical",
            "requires_action": True,
            "content": f"New STEMI patient, cath lab 2, number {n}",
        }
        self.phones[n % len(self.phones)].send(json.dumps(alert).encode())

    def _phone(self, phone: Phone, frame: Frame, now: float) -> None:
        if frame.type == "error":
            self.errors.append(f"an alert: {frame.code}")
        elif frame.type == "system_notification" and frame.event == "raised" and frame.alert_id is not None:
            n = int(frame.content.rsplit(" ", 1)[1])
            took_ms = (now - self._due[n]) * 1000
            self.all_ms.append(took_ms)
            self._missing[n] -= 1
            if not self._missing[n]:
                self.last_ms.append(took_ms)
            self._answer(phone, frame.alert_id, "delivered")
            # Another one than the raiser, a different one each time.
            if phone is self.phones[(n * 7 + 3) % len(self.phones)]:
                self._closer[frame.alert_id] = phone
                self._answer(phone, frame.alert_id, "accept")
        elif frame.event == "accepted" and frame.alert_id is not None and self._closer.get(frame.alert_id) is phone:
            del self._closer[frame.alert_id]
            self._answer(phone, frame.alert_id, "done")
            self.done += 1

    def _answer(self, phone: Phone, alert_id: str, answer: str) -> None:
        said = {
            "type": "alert_response",
            "client_msg_id": f"r-{next(self._count)}",
            "alert_id": alert_id,
            "answer": answer,
        }
        phone.send(json.dumps(said).encode())

    def settle(self) -> None:
        """Until every alert that was raised is on every phone and done."""
        end = time.perf_counter() + WAIT_S
        while len(self.last_ms) < self.raised or self.done < self.raised:
            self.read(0.1)
            if time.perf_counter() > end:
                left = [n for n, missing in self._missing.items() if missing]
                raise SystemExit(f"{len(left)} of {self.raised} alerts did not reach every phone: {self.errors[:3]}")

    def close(self) -> None:
        self._poll.close()
        for phone, _ in self._reader.values():
            phone.socket.close()


def waited_s(pid: int) -> float:
    """Seconds that a process's event loop was ready to run and another had the core; 0 where that is not counted."""
    # Of the process's first thread, which runs the loop.
    counts = Path(f"/proc/{pid}/schedstat")
    return int(counts.read_text().split()[1]) / 1e9 if counts.exists() else 0.0


def measure(place: Hospital, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the figures."""
    secret = (place.data / "keys" / "jwt.key").read_text().strip().encode()
    server = Chatd(place.url, gateway_pid(place.up.process.pid), secret)
    ward = Ward(server, arguments.phones, arguments.doctors)
    for doctor in ward.doctors:
        ward.ask(doctor)
    end = time.perf_counter() + WAIT_S
    while ward.streams < arguments.doctors:
        ward.read(0.1)
        if time.perf_counter() > end:
            raise SystemExit(f"{ward.streams} of {arguments.doctors} answers stream: {ward.errors[:3]}")
    gaps: dict[str, list[float]] = {"without": [], "with": []}
    rounds: list[dict[str, float]] = []
    cpu: dict[str, float] = {"without": 0.0, "with": 0.0}
    waited: dict[str, float] = {"without": 0.0, "with": 0.0}
    streams: list[int] = []
    with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("alerts beside answers", total=2 * arguments.rounds)
        for n in range(arguments.rounds):
            pair: dict[str, float] = {}
            # Turned about, so that what drifts meets both kinds alike.
            for kind in ("without", "with") if n % 2 == 0 else ("with", "without"):
                ward.read_until(time.perf_counter() + SETTLE_S)
                begin, before_s, waited_before_s = time.perf_counter(), server.cpu_s(), waited_s(server.pids[0])
                ward.is_counting = True
                if kind == "with":
                    for k in range(round(arguments.seconds * arguments.rate)):
                        ward.read_until(begin + k / arguments.rate)
                        ward.raise_alert(begin + k / arguments.rate)
                ward.read_until(begin + arguments.seconds)
                ward.is_counting = False
                streams.append(ward.streams)
                cpu[kind] += server.cpu_s() - before_s
                waited[kind] += waited_s(server.pids[0]) - waited_before_s
                pair[kind] = quantile(sorted(ward.gaps_ms), 0.99)
                gaps[kind] += ward.gaps_ms
                ward.gaps_ms = []
                ward.settle()
                bar.advance(task)
            rounds.append(pair)
    ward.close()
    each_s = arguments.rounds * arguments.seconds
    return {
        "engine": arguments.engine,
        "phones": arguments.phones,
        "doctors": arguments.doctors,
        "streams": statistics.mean(streams),
        "alerts": ward.raised,
        "alerts_per_s": arguments.rate,
        "answers": ward.answers,
        "errors": ward.errors,
        "gateway_cores": {kind: spent_s / each_s for kind, spent_s in cpu.items()},
        "gateway_waited": {kind: spent_s / each_s for kind, spent_s in waited.items()},
        "load": os.getloadavg()[0],
        "p99_of_rounds_ms": rounds,
        "all_ms": sorted(ward.all_ms),
        "last_ms": sorted(ward.last_ms),
        "gaps_ms": {kind: sorted(values) for kind, values in gaps.items()},
    }


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures without their samples."""
    told = {name: value for name, value in figures.items() if name not in ("all_ms", "last_ms", "gaps_ms", "errors")}
    told["errors"] = len(figures["errors"])
    for name in ("all_ms", "last_ms"):
        values = figures[name]
        told[name] = {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": values[-1]}
    told["gaps_ms"] = {
        kind: {"pieces": len(values), "p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": values[-1]}
        for kind, values in figures["gaps_ms"].items()
    }
    told["gaps_p99_ratio"] = told["gaps_ms"]["with"]["p99"] / told["gaps_ms"]["without"]["p99"]
    told["gaps_p99_ratio_of_rounds"] = statistics.median(
        pair["with"] / pair["without"] for pair in figures["p99_of_rounds_ms"]
    )
    return told


def show(told: dict[str, Any]) -> None:
    table = Table(
        title=f"{told['alerts']} alerts to {told['phones']} phones, {told['doctors']} answers, {told['engine']} engine"
    )
    for column in ("", "p50 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "raise to delivered, every phone": told["all_ms"],
        "raise to delivered, the last phone": told["last_ms"],
        "gap between pieces of text, without alerts": told["gaps_ms"]["without"],
        "gap between pieces of text, with alerts": told["gaps_ms"]["with"],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{values[column]:.1f}" for column in ("p50", "p99", "max")))
    console = Console()
    console.print(table)
    console.print(
        f"gaps' p99 with ÷ without: {told['gaps_p99_ratio']:.2f} of all, "
        f"{told['gaps_p99_ratio_of_rounds']:.2f} median of the rounds"
    )
    cores = told["gateway_cores"]
    console.print(f"gateway's share of a core: {cores['without']:.2f} without, {cores['with']:.2f} with alerts")
    waited = told["gateway_waited"]
    console.print(
        f"its loop waited for a core that others had: {waited['without']:.0%} of the time without, "
        f"{waited['with']:.0%} with alerts; load of the machine {told['load']:.1f} on {os.cpu_count()} cores"
    )
    console.print(f"answers that streamed at once: {told['streams']:.1f} on average; errors {told['errors']}")


def plot(figures: dict[str, Any], path: Path) -> None:
    """How many deliveries took how long, and how many gaps were longer than what."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    figure, (wait, gap) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, label in (("all_ms", "every phone"), ("last_ms", "the last phone of an alert")):
        values = figures[name]
        wait.step(values, [(n + 1) / len(values) for n in range(len(values))], where="post", label=label)
    wait.axvline(GOAL_MS, color="grey", linestyle=":", linewidth=1)
    wait.axhline(0.99, color="grey", linestyle=":", linewidth=1)
    wait.annotate("goal: p99", (GOAL_MS, 0.99), fontsize=8, ha="right", va="top", color="grey")
    wait.set(xscale="log", xlabel="ms from the raise", ylabel="share delivered", ylim=(0, 1.01))
    wait.set_title(f"{len(figures['last_ms'])} alerts, {figures['phones']} phones")
    for kind, values in figures["gaps_ms"].items():
        longer = [1 - n / len(values) for n in range(len(values))]
        gap.step(values, longer, where="post", label=f"{kind} alerts")
    gap.axhline(0.01, color="grey", linestyle=":", linewidth=1)
    # Pieces that this client read in one go have no gap.
    gap.set(xscale="log", yscale="log", xlabel="gap between pieces of one answer, ms", ylabel="share that is longer")
    gap.set_xlim(left=1)
    gap.annotate("p99", (1, 0.01), fontsize=8, va="bottom", color="grey")
    gap.set_title(f"{figures['doctors']} answers, {figures['engine']} engine")
    for axes in (wait, gap):
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def until_ready(place: Hospital) -> None:
    """Wait until the model answers, as a phone would see it."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if call(place.url, "/health/ready").json()["mode"] == "normal":
                return
        time.sleep(0.5)
    raise SystemExit(f"the model did not become ready: {place.up.log()[-2000:]}")


@contextlib.contextmanager
def writing(engine: str, env: dict[str, str]) -> Iterator[Hospital]:
    """A demo hospital whose answers are written by ``engine``."""
    with contextlib.ExitStack() as stack:
        arguments = ["--engine", engine]
        if engine == "mlx":
            from chatd.inference import tiny

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "1m"
            tiny.make(folder, "1m")
            arguments += ["--model", str(folder)]
        place = stack.enter_context(hospital(*arguments, env=env))
        until_ready(place)
        yield place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("scripted", "mlx"), default="scripted", help="(default: scripted)")
    parser.add_argument("--phones", type=int, default=200)
    parser.add_argument("--doctors", type=int, default=20, help="answers that stream (default: 20)")
    parser.add_argument("--rounds", type=int, default=10, help="of each kind (default: 10)")
    parser.add_argument("--seconds", type=float, default=10, help="of each round (default: 10)")
    parser.add_argument("--rate", type=float, default=1.2, help="alerts a second in a round with them (default: 1.2)")
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, MOST_SECONDS)
    if arguments.engine == "mlx":
        restart(sys.orig_argv[1:])
    env = {
        "CHATD_MESSAGES_PER_MINUTE": "100000",
        "CHATD_ENGINE_SLOTS": str(arguments.doctors + 2),
        "CHATD_ENGINE_RESERVED_SLOTS": "2",
        "CHATD_ANSWER_MAX_TOKENS": "400",
        # As in the bench of the inference: a CPU takes seconds for a whole record's prompt.
        "CHATD_PROMPT_BUDGET_TOKENS": "2200",
        # One process answers the pings of all phones, on a machine that is busy with everything else too.
        "CHATD_PING_TIMEOUT_S": "120",
        "CHATD_MODEL_DOWN_S": "120",
        "CHATD_JOB_LEASE_S": "60",
        "CHATD_JOB_BEAT_S": "1",
    }
    with writing(arguments.engine, env) as place:
        figures = measure(place, arguments)
    told = summary(figures)
    show(told)
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    name = "alerts" if arguments.engine == "scripted" else f"alerts-{arguments.engine}"
    (out / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
    plot(figures, out / f"{name}.png")
    print(f"wrote {out / name}.json and {name}.png")
    return 1 if figures["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
