"""Kill or stop the inference worker while it writes, again and again, and check every promise to the phones.

``python -m tests.faults.workers --runs 50`` prints what each kind of fault led to and exits with 1 on the first broken
promise, naming its seed. Two workers share the queue; each fault meets one that is writing to a phone at that moment,
and what is measured is how soon the phones whose questions it holds hear of it. Kinds:

- ``kill``: SIGKILL the engine's process; its supervisor starts another one.
- ``stop``: SIGSTOP it; the supervisor finds it silent and kills it.
- ``zombie``: SIGSTOP it and its supervisor for longer than the lease, then let both go on: what it still writes must
  be refused.

At the end both workers are killed for good, and one is started again: the mode goes to facts_only and comes back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from tests.blas import fast_blas
from tests.chat_client import Broken, ChatClient
from tests.server import Hospital, clean_environment, hospital

Kind = Literal["kill", "stop", "zombie"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "kill", "zombie")
DOCTORS = 4
#: Seconds within which a phone hears of a lost worker and the mode is facts_only without any; and by what factor a
#: busy machine may exceed them before the campaign fails.
HEARD_S, DOWN_S, GRACE = 2.0, 15.0, 2.0
#: No wait of a run is longer.
WAIT_S = 60.0
ENV = {
    "CHATD_MESSAGES_PER_MINUTE": "100000",
    "CHATD_ENGINE_SLOTS": "6",
    "CHATD_ENGINE_RESERVED_SLOTS": "1",
    "CHATD_ANSWER_MAX_TOKENS": "160",
    # Short prompts: what is looked at here is what follows them.
    "CHATD_PROMPT_BUDGET_TOKENS": "2200",
}


class Infer:
    """One ``chatd infer`` with its supervisor and its engine's process."""

    def __init__(self, place: Hospital, engine: list[str]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chatd", "infer", "--data-dir", str(place.data), *engine],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env={**clean_environment(), **fast_blas(), **place.env},
        )

    def engine_pid(self) -> int:
        """The engine's process under the supervisor; raises Broken when there is none."""
        listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        children = [int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == self.process.pid]
        if not children:
            raise Broken("a supervisor without an engine")
        return children[0]

    def told(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def kill(self) -> None:
        """Supervisor and engine at once, as a power cut does it."""
        try:
            pids = [self.engine_pid()]
        except Broken:
            pids = []
        for pid in (self.process.pid, *pids):
            send(pid, signal.SIGKILL)
        self.process.wait(WAIT_S)
        self.log.close()


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


class Phone:
    """One doctor's phone: what it heard of its question, and when."""

    def __init__(self, client: ChatClient, msg_id: str) -> None:
        self.client, self.msg_id = client, msg_id
        self.heard: list[tuple[float, dict[str, Any]]] = []
        self.answer: dict[str, Any] | None = None
        self.response_id: str | None = None
        self.writing = asyncio.Event()

    async def ask(self) -> None:
        """Ask, and listen to the end; raises Broken on a broken promise of the stream."""
        await self.client.send(
            {
                "type": "user_message",
                "client_msg_id": self.msg_id,
                "content": f"Summarise {self.msg_id}",
                "patient_id": "7823",
            }
        )
        attempt = 0
        while self.answer is None:
            async with asyncio.timeout(WAIT_S):
                frame = await self.client.receive()
            if frame["type"] == "accepted":
                self.response_id = frame["response_id"]
            if frame.get("response_id") != self.response_id or self.response_id is None:
                continue
            self.heard.append((time.monotonic(), frame))
            if frame["type"] == "ai_delta":
                if frame["attempt"] < attempt:
                    raise Broken("text of an attempt that was given up")
                attempt = frame["attempt"]
                self.writing.set()
            elif frame["type"] == "ai_response":
                self.answer = frame
                self.writing.set()

    def longest_silence_s(self, since: float) -> float:
        """The longest time without a word from ``since`` until the phone was told that something is wrong.

        Without such a frame, until the answer: its text came from the other worker.
        """
        longest, last = 0.0, since
        for moment, frame in self.heard:
            if moment <= since:
                continue
            longest, last = max(longest, moment - last), moment
            if frame["type"] == "queue" and frame["state"] in ("stalled", "restarted"):
                break
        return longest


def holders(place: Hospital, phones: list[Phone]) -> dict[str, int]:
    """Which supervisor's worker holds each question that is being written now."""
    held = {}
    with place.redis() as redis:
        for phone in phones:
            state, worker = redis.hmget(f"chatd:{{queue}}:job:{phone.response_id}", "state", "worker")
            if state == b"running":
                held[phone.msg_id] = int(worker.split(b"-")[-2])  # HOST-PID-CHANCE
    return held


def fault(kind: Kind, victim: Infer) -> None:
    """Let it happen to the process that writes."""
    pid = victim.engine_pid()
    if kind == "kill":
        send(pid, signal.SIGKILL)
    elif kind == "stop":
        send(pid, signal.SIGSTOP)
    else:
        send(victim.process.pid, signal.SIGSTOP)
        send(pid, signal.SIGSTOP)


async def ready(place: Hospital, workers: int, within_s: float = WAIT_S) -> float:
    """Wait until so many engines are ready; returns the seconds it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < within_s:
        with place.redis() as redis:
            states = redis.hvals("chatd:{queue}:workers")
        now_ms = time.time() * 1000
        fresh = [one for one in states if b" ready " in one and now_ms - int(one.split(b" ")[0]) < 4_000]
        if len(fresh) >= workers:
            return time.monotonic() - begin
        await asyncio.sleep(0.1)
    raise Broken(f"{workers} workers were not ready within {within_s:g} s")


async def one_run(seed: int, place: Hospital, url: str, workers: list[Infer], token: str) -> dict[str, Any]:
    """One fault in the middle of some answers; returns what was measured."""
    kind, chance = KINDS[seed % len(KINDS)], random.Random(seed)
    await ready(place, len(workers))
    clients = [
        ChatClient(url, department="cardiology", user_id="dr.santos.cardio", token=token, session_id=f"s-{seed}-{n}")
        for n in range(DOCTORS)
    ]
    for client in clients:
        await client.connect()
    phones = [Phone(client, f"m-{seed}-{n}") for n, client in enumerate(clients)]
    asking = [asyncio.create_task(phone.ask()) for phone in phones]
    done, _ = await asyncio.wait(
        [asyncio.create_task(phone.writing.wait()) for phone in phones],
        timeout=WAIT_S,
        return_when=asyncio.FIRST_COMPLETED,
    )
    if not done:
        raise Broken("nothing was written")
    await asyncio.sleep(chance.random() * 0.3)
    held = holders(place, phones)
    struck_pid = next((held[phone.msg_id] for phone in phones if phone.writing.is_set() and phone.msg_id in held), None)
    # The text may have ended since: then the fault meets whichever worker holds anything, or one of them.
    struck_pid = struck_pid or next(iter(held.values()), workers[seed % len(workers)].process.pid)
    victim = next(worker for worker in workers if worker.process.pid == struck_pid)
    fault(kind, victim)
    struck = time.monotonic()
    if kind == "zombie":
        await asyncio.sleep(7.0)  # longer than the lease: others have its jobs now
        send(victim.engine_pid(), signal.SIGCONT)
        send(victim.process.pid, signal.SIGCONT)
    await asyncio.gather(*asking)
    for client in clients:
        # Whatever else would come, comes before the pong of a later ping.
        await client.send({"type": "ping", "t": seed})
        await client.until("pong", t=seed)
    silences, again = [], 0
    for phone in phones:
        answers = phone.client.answers[phone.msg_id]
        if len(answers) != 1:
            raise Broken(f"{len(answers)} answers")
        if answers[0]["patient_id"] != "7823":
            raise Broken("an answer about somebody else")
        again += answers[0]["attempt"] > 1
        if held.get(phone.msg_id) == struck_pid:
            silences.append(phone.longest_silence_s(struck))
    for client in clients:
        await client.close()
    return {"kind": kind, "heard_s": max(silences, default=0.0), "again": again}


async def down_and_up(
    place: Hospital, url: str, workers: list[Infer], engine: list[str], token: str
) -> dict[str, float]:
    """No worker is left: mode facts_only, answers all the same; then one comes back."""
    client = ChatClient(url, department="cardiology", user_id="dr.santos.cardio", token=token)
    await client.connect()
    for worker in workers:
        worker.kill()
    workers.clear()
    begin = time.monotonic()
    async with asyncio.timeout(WAIT_S):
        await client.until("mode", mode="facts_only")
    down_s = time.monotonic() - begin
    frames = await client.ask("Summarise the case", "7823")
    if frames[-1]["type"] != "ai_response" or frames[-1]["status"] != "degraded":
        raise Broken(f"without a worker: {frames[-1].get('status', frames[-1]['type'])}")
    workers.append(Infer(place, engine))
    begin = time.monotonic()
    async with asyncio.timeout(WAIT_S):
        await client.until("mode", mode="normal")
    up_s = time.monotonic() - begin
    frames = await client.ask("Summarise the case again", "7823")
    if frames[-1].get("model") is None:
        raise Broken("the model did not come back")
    await client.close()
    return {"down_s": down_s, "up_s": up_s}


def run(first_seed: int, runs: int, engine: list[str], *, show: bool = True) -> dict[str, Any]:
    """All runs on one hospital; raises Broken with the seed of the first that did not hold."""
    figures: list[dict[str, Any]] = []
    workers: list[Infer] = []
    with hospital(env=ENV) as place, Progress(disable=not show) as progress:
        # A gateway that knows of a model; its workers are the ones started here.
        gateway = place.serve({"CHATD_ENGINE": engine[1]})
        token = place.token(ttl="43000")
        task = progress.add_task("faults", total=runs)
        try:
            workers += [Infer(place, engine), Infer(place, engine)]
            for seed in range(first_seed, first_seed + runs):
                try:
                    figures.append(asyncio.run(one_run(seed, place, gateway.url, workers, token)))
                except (Broken, TimeoutError) as error:
                    told = "\n".join(worker.told()[-1500:] for worker in workers)
                    raise Broken(
                        f"seed {seed} ({KINDS[seed % len(KINDS)]}): {error!r}\n{told}\n{gateway.log()[-1500:]}"
                    ) from error
                progress.advance(task)
            lasting = asyncio.run(down_and_up(place, gateway.url, workers, engine, token))
        finally:
            for worker in workers:
                worker.kill()
    return {"runs": figures, **lasting}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--scripted", action="store_true", help="the scripted engine instead of mlx-lm on a tiny model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = ["--engine", "scripted"]
        if not arguments.scripted:
            from chatd.inference import tiny

            tiny.make(Path(folder) / "tiny", "1m")
            engine = ["--engine", "mlx", "--model", str(Path(folder) / "tiny")]
        try:
            told = run(arguments.seed, arguments.runs, engine)
        except Broken as broken:
            print(broken, file=sys.stderr)
            return 1
    kinds = Counter(one["kind"] for one in told["runs"])
    for kind in dict.fromkeys(KINDS):
        heard = [one["heard_s"] for one in told["runs"] if one["kind"] == kind]
        if heard:
            print(
                f"{kind:8} {kinds[kind]:4} runs, each question with one answer; the phone heard after "
                f"{statistics.median(heard):.1f} s, at most {max(heard):.1f} s (promised: {HEARD_S:g} s)"
            )
    print(f"written again by another worker: {sum(one['again'] for one in told['runs'])} answers")
    print(
        f"no worker: facts_only after {told['down_s']:.1f} s (promised: {DOWN_S:g} s), "
        f"back {told['up_s']:.1f} s after a new one"
    )
    late = [one for one in told["runs"] if one["heard_s"] > HEARD_S * GRACE]
    if late or told["down_s"] > DOWN_S * GRACE:
        print(f"{len(late)} runs far above what was promised", file=sys.stderr)
        return 1
    print(f"{kinds.total()} passed, 0 failed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
