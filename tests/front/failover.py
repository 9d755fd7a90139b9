"""The primary of Redis is killed under many phones behind nginx, again and again: who is back when, and what was lost.

``python -m tests.front.failover --kills 3`` starts a primary, a replica, three Sentinels, two gateways and nginx. Each
of 200 phones asks again and again, three times a minute; alerts are raised all the time. What counts is how long a
person waits: from the kill, or from asking where that was later, to the answer. After each kill it waits until every
phone has had the answer to a question that it asked afterwards, and starts the killed Redis again, which comes back as
the replica.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.front.conftest import ENV
from tests.front.redis_sentinel import Kept
from tests.front.test_front_moves import Bells, Doctor, Ward, settle, until
from tests.server import hospital

#: As promised: so many phones within so many seconds.
SHARE, BACK_S = 0.95, 10.0
GIVE_UP_S = 120.0


async def _kill(kept: Kept, doctors: list[Doctor], running: list[asyncio.Task[None]]) -> tuple[float, list[float]]:
    """Kill the primary once; seconds until another was promoted, and what each phone waited for its next answer."""
    # A question that is under way at this moment is the next one to be answered.
    first = [len(doctor.asked) - (doctor.waiting is not None) for doctor in doctors]
    old = await asyncio.to_thread(kept.kill_primary)
    began = time.monotonic()
    waited: dict[int, float] = {}
    promoted: list[float] = []

    async def watch() -> None:
        await asyncio.to_thread(kept.await_other, old)
        promoted.append(time.monotonic() - began)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(GIVE_UP_S):
        while len(waited) < len(doctors):
            for task in running:
                if task.done():
                    task.result()
            for number, doctor in enumerate(doctors):
                asked = doctor.asked[first[number] :][:1]
                if number not in waited and asked and asked[0] in doctor.phone.answers:
                    waited[number] = time.monotonic() - max(began, doctor.asked_at[asked[0]])
            await asyncio.sleep(0.02)
        await watching
    await asyncio.to_thread(kept.start, old)
    await asyncio.to_thread(kept.await_replica, old)
    return promoted[0], sorted(waited.values())


async def _campaign(ward: Ward, kept: Kept, phones: int, kills: int, pause_s: float) -> bool:
    doctors = [Doctor(ward, number, pause_s=pause_s) for number in range(phones)]
    bells = Bells(ward)
    running = [asyncio.create_task(doctor.run()) for doctor in doctors]
    ringing = asyncio.create_task(bells.run())
    is_well = True
    try:
        await until(lambda: all(doctor.phone.answers for doctor in doctors), running)
        for number in range(kills):
            promoted_s, waited_s = await _kill(kept, doctors, running)
            in_time = sum(each <= BACK_S for each in waited_s)
            is_well &= in_time >= SHARE * phones
            p50, p95, last = waited_s[phones // 2], waited_s[round(SHARE * phones) - 1], waited_s[-1]
            away = sum(len(doctor.away_s) for doctor in doctors)
            print(
                f"kill {number + 1}: promoted after {promoted_s:.1f} s; waited for an answer {p50:.1f} s (p50), "
                f"{p95:.1f} s (p95), {last:.1f} s (longest); {in_time} of {phones} at most {BACK_S:g} s; lines lost so "
                f"far {away}, the longest for {max((s for d in doctors for s in d.away_s), default=0):.1f} s",
                flush=True,
            )
        ringing.cancel()
        # Raises where anything accepted is missing, doubled, or not on every phone.
        await settle(doctors, bells)
    finally:
        for task in (ringing, *running):
            task.cancel()
        await asyncio.gather(ringing, *running, return_exceptions=True)
        for doctor in doctors:
            await doctor.phone.close()
    asked = sum(len(doctor.asked) for doctor in doctors)
    print(f"lost: 0 of {asked} questions, 0 of {len(bells.recorded)} alerts on {phones} phones")
    return is_well


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.front.failover", description=__doc__)
    parser.add_argument("--phones", type=int, default=200)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--pause-s", type=float, default=20.0, help="between two questions of a phone (default: 20)")
    options = parser.parse_args(arguments)
    kept = Kept()
    env = {**ENV, "CHATD_ALERT_RAISES_PER_MINUTE": "100000"}
    try:
        with (
            hospital("--redis", kept.url, env=env) as place,
            tempfile.TemporaryDirectory(prefix="gw-") as folder,
        ):
            ward = Ward(place, Path(folder))
            try:
                ward.front.start()
                os.environ["SSL_CERT_FILE"] = str(ward.front.authority.ca)
                is_well = asyncio.run(_campaign(ward, kept, options.phones, options.kills, options.pause_s))
            finally:
                ward.front.stop()
    finally:
        kept.close()
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
