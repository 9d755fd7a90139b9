"""Kill -9 the gateway at each step of a question's way, reconnect elsewhere, and check every promise.

``python -m tests.faults.campaign --runs 200`` prints one line a step and exits with 1 on the first broken promise,
naming its seed; ``--seed N --runs 1`` repeats that run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

from rich.progress import Progress
from websockets.exceptions import ConnectionClosed

from chatd.faults import STEPS
from tests.chat_client import Broken, ChatClient
from tests.server import Hospital, Process, hospital

#: Beside the steps: a kill after a random moment, wherever the gateway is then.
ANYWHERE = "anywhere"
QUESTION = "Analyze João Silva's ECG results"
ENV = {"CHATD_RUN_LEASE_S": "0.5", "CHATD_SWEEP_INTERVAL_S": "0.1", "CHATD_MESSAGES_PER_MINUTE": "100000"}


def step_of(seed: int) -> str:
    """The step of a seed: all in turn, so that any six seeds in a row show all of them."""
    return (*STEPS, ANYWHERE)[seed % (len(STEPS) + 1)]


async def one_run(seed: int, victim: Process, survivor: str, token: str) -> None:
    """Ask through a gateway that dies at the seed's step, go on through the survivor.

    Raises:
        Broken: not exactly one answer, a gap or a repeat in seq, or an answer to something else.
    """
    chance = random.Random(seed)
    step = step_of(seed)
    client = ChatClient(
        victim.url, department="cardiology", user_id="dr.santos.cardio", token=token, session_id=f"sess_{seed}"
    )
    msg_id = f"m-{seed}"
    frame = {"type": "user_message", "client_msg_id": msg_id, "content": QUESTION, "patient_id": "7823"}
    await client.connect()
    # Some history first, so that the resume position is not always 0.
    for n in range(chance.randrange(2)):
        await ask_before(client, seed, n)
    await client.send(frame)
    if step == ANYWHERE:
        await asyncio.sleep(chance.random() * 0.06)
        victim.kill()
    try:
        while msg_id not in client.answers:
            await client.receive()
        if step == "deliver":
            await client.receive()
    except ConnectionClosed:
        pass
    victim.kill()
    if client.socket is not None:
        await client.cut()
    await client.connect(survivor)
    if msg_id not in client.answers:
        # The outbox's rule: what was not accepted is sent again; what was, too, when in doubt.
        if msg_id not in client.accepted or chance.random() < 0.5:
            await client.send(frame)
        while msg_id not in client.answers:
            await client.receive()
    # Whatever else would come, comes before the pong of a later ping.
    await asyncio.sleep(0.05)
    await client.send({"type": "ping", "t": seed})
    await client.until("pong", t=seed)
    answers = client.answers[msg_id]
    facts = [f for f in client.frames if f["type"] == "facts" and f["client_msg_id"] == msg_id]
    if len(answers) != 1 or len(facts) != 1:
        raise Broken(f"{len(answers)} answers and {len(facts)} facts")
    if answers[0]["patient_id"] != "7823" or answers[0]["status"] != "completed":
        raise Broken(f"answered {answers[0]['status']}")
    if client.frames.index(facts[0]) > client.frames.index(answers[0]):
        raise Broken("the answer came before the facts")
    await client.close()


async def ask_before(client: ChatClient, seed: int, n: int) -> None:
    """A question that no fault meets: it is about the open ward, which the steps' counters do not count."""
    await client.send(
        {
            "type": "context_set",
            "client_msg_id": f"ctx-{seed}-{n}",
            "patient_id": "7823",
            "second_identifier": "1959-01-15",
        }
    )
    await client.until("context", client_msg_id=f"ctx-{seed}-{n}")


def start_victim(place: Hospital, seed: int) -> Process:
    """A gateway that will kill itself at the seed's step."""
    step = step_of(seed)
    return place.serve({} if step == ANYWHERE else {"CHATD_FAULT_KILL_AT": f"{step}:1"})


def run(first_seed: int, runs: int, *, show: bool = True) -> Counter[str]:
    """Runs by step that held every promise; raises Broken with the seed of the first that did not."""
    held: Counter[str] = Counter()
    with hospital(env=ENV) as place, ThreadPoolExecutor(2) as pool, Progress(disable=not show) as progress:
        token = place.token(ttl="43000")
        task = progress.add_task("kills", total=runs)
        seeds = range(first_seed, first_seed + runs)
        waiting: list[Future[Process]] = [pool.submit(start_victim, place, seed) for seed in seeds[:2]]
        for number, seed in enumerate(seeds):
            victim = waiting.pop(0).result()
            if number + 2 < runs:
                waiting.append(pool.submit(start_victim, place, seeds[number + 2]))
            try:
                asyncio.run(one_run(seed, victim, place.url, token))
            except (Broken, TimeoutError) as error:
                raise Broken(f"seed {seed} (step {step_of(seed)}): {error!r}\n{victim.log()[-2000:]}") from error
            finally:
                place.forget(victim)
            held[step_of(seed)] += 1
            progress.advance(task)
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    try:
        held = run(arguments.seed, arguments.runs)
    except Broken as broken:
        print(broken, file=sys.stderr)
        return 1
    for step in (*STEPS, ANYWHERE):
        print(f"{step:10} {held[step]:4} runs, each with one answer, no gap and no repeat")
    print(f"{held.total()} passed, 0 failed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
