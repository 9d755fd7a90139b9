"""What the context costs per question: five layers out of Redis, opened and decoded, then composed to a prompt.

``python loadtest/bench/context.py [--rounds N] [--patients N] [--results N]``, from the repository's root. Starts a
private Redis, fills it with invented patients and prints p50 and p99 in ms, of the clock and of this process's CPU
time (which a busy machine does not stretch): once with every layer met for the first
time by the process (cold), once as in service, where a doctor asks again about the same patient (warm).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import msgspec

from context.budget import estimate_tokens
from context.compose import compose
from context.layers import Event, Message, Observation, PatientLayer
from context.seal import KeyRing, Sealer
from context.store import ContextStore, connect
from tests.context.sample_layers import CARDIOLOGY, DOCTOR, HOSPITAL, PATIENT
from tests.redis_server import RedisServer

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)


def patient(number: int, results: int) -> PatientLayer:
    """A record with ``results`` results of 40 analytes, a tenth of them abnormal, and a tenth as many events."""
    return msgspec.structs.replace(
        PATIENT,
        patient_id=f"p-{number}",
        observations=tuple(
            Observation(
                ref=f"Observation/{number}-{n}",
                name=f"Analyte {n % 40}",
                value=n * 1.5,
                unit="mmol/L",
                low=1.0,
                high=9.0,
                flag="H" if n % 10 == 0 else "",
                as_of=NOW - timedelta(hours=n),
            )
            for n in range(results)
        ),
        events=tuple(
            Event(ref=f"Encounter/{number}-{n}", kind="encounter", name="Visit", start=NOW - timedelta(days=n))
            for n in range(results // 10)
        ),
    )


def percentile(sorted_ms: Sequence[float], share: float) -> float:
    return sorted_ms[min(len(sorted_ms) - 1, int(len(sorted_ms) * share))]


async def measure(url: str, rounds: int, patients: int, results: int) -> None:
    async with connect(url) as client:
        sealer = Sealer(KeyRing.generate())
        store = ContextStore(client, sealer)
        await store.begin_load("bench")
        await store.put_hospital(HOSPITAL)
        await store.put_department(CARDIOLOGY)
        await store.put_doctor(DOCTOR)
        for number in range(patients):
            await store.put_patient(patient(number, results))
            for n in range(10):
                await store.remember(
                    f"s-{number}",
                    Message(role="doctor", text=f"question {n}", at=NOW, patient_id=f"p-{number}"),
                )
        await store.mark_loaded("bench")
        size = len(msgspec.msgpack.encode(patient(0, results)))
        print(f"{patients} patients of {size / 1024:.0f} KiB with {results} results; {rounds} rounds, times in ms")
        print(f"{'':16}{'p50':>8}{'p99':>8}{'CPU p50':>10}{'CPU p99':>10}")
        for name, fresh in (("cold", True), ("warm", False)):
            taken: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in ("read", "compose", "both")}
            gc.collect()
            for number in range(rounds):
                if fresh:
                    store = ContextStore(client, sealer)
                chosen = number % patients
                started = time.perf_counter(), time.process_time()
                layers = await store.read(
                    department_id="cardiology",
                    user_id="dr.teste",
                    patient_id=f"p-{chosen}",
                    session_key=f"s-{chosen}",
                )
                read = time.perf_counter(), time.process_time()
                compose(
                    layers,
                    "What are the abnormal results?",
                    now=NOW,
                    budget_tokens=6000,
                    count_tokens=estimate_tokens,
                )
                done = time.perf_counter(), time.process_time()
                for what, begin, end in (("read", started, read), ("compose", read, done), ("both", started, done)):
                    for clock in (0, 1):
                        taken[what][clock].append((end[clock] - begin[clock]) * 1000)
            for what, (wall_ms, cpu_ms) in taken.items():
                wall_ms.sort()
                cpu_ms.sort()
                print(
                    f"{name + ' ' + what:16}{percentile(wall_ms, 0.5):8.2f}{percentile(wall_ms, 0.99):8.2f}"
                    f"{percentile(cpu_ms, 0.5):10.2f}{percentile(cpu_ms, 0.99):10.2f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--results", type=int, default=300)
    arguments = parser.parse_args()
    server = RedisServer()
    try:
        server.start()
        asyncio.run(measure(server.url, arguments.rounds, arguments.patients, arguments.results))
    finally:
        server.close()


if __name__ == "__main__":
    main()
