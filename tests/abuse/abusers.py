"""One abuser beside ten phones: what becomes of the abuser, and what the alerts of the others cost meanwhile.

``python -m tests.abuse.abusers`` prints, for each kind of abuse, the others' latency from raising to screen beside
that without abuse, as a ratio: rounds with and without it by turns, all latencies of a kind taken together. The abuser
is a process of its own and stands for another machine: it gets the processor time that the others leave, so that the
ratio is of what the gateway does for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from tests.abuse.gateway import closes, cpu_s, faults_in, gateway_pid, open_files, rss_bytes, token_for
from tests.abuse.wire import PING, PONG, TEXT, Ended, Peer, frame, phone, text
from tests.http_call import call
from tests.server import Hospital, clean_environment, hospital

DEPARTMENT, ABUSER = "cardiology", "dr.abuser"
VICTIMS = 10
#: Between two alerts.
BEAT_S = 0.05
#: The abuser's questions meet the limit; those who raise alerts for the measurement do not. A small outbox shortens
#: the wait for a phone that does not read.
ENV = {"CHATD_ALERT_RAISES_PER_MINUTE": "1000000", "CHATD_OUTBOX_BYTES": "131072", "CHATD_DRAIN_SPREAD_S": "0.1"}


# --- the abusers: each ends with what it has seen -----------------------------------------------------------


class Abuser:
    """What an abuser has: an address, a good token, and a time to stop."""

    def __init__(self, url: str, user: str, token: str, seconds: float) -> None:
        self.url, self.user, self.token = url, user, token
        self._end_s = time.monotonic() + seconds
        self.seen: Counter[str] = Counter()

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._end_s

    async def phone(self, *, buffer_bytes: int | None = None) -> Peer:
        return await phone(self.url, self.user, DEPARTMENT, self.token, buffer_bytes=buffer_bytes)

    async def pour(self, peer: Peer, data: bytes) -> None:
        """Send as fast as the gateway takes it, until the time is over or the line is."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(max(0.0, self._end_s - time.monotonic())):
                while not peer.writer.is_closing():
                    peer.send(data)
                    await peer.writer.drain()

    async def end_of(self, peer: Peer, within_s: float = 30.0) -> str:
        """How the gateway ended the line: a code, "cut", or "open" where it did not."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await peer.next()
        except Ended as ended:
            return "cut" if ended.code is None else str(ended.code)
        except TimeoutError:
            return "open"
        finally:
            await peer.leave()


async def _read(peer: Peer, seen: Counter[str]) -> None:
    with contextlib.suppress(Ended):
        while True:
            opcode, payload = await peer.next()
            if opcode == PING:
                peer.send(frame(PONG, payload))
            elif opcode == TEXT:
                found = json.loads(payload)
                seen[found.get("code") or found["type"]] += 1


async def _flood(abuser: Abuser, data: bytes) -> None:
    peer = await abuser.phone()
    reading = asyncio.create_task(_read(peer, abuser.seen))
    await abuser.pour(peer, data)
    reading.cancel()
    await asyncio.wait([reading])
    abuser.seen[await abuser.end_of(peer, 0.1)] += 1


async def frames(abuser: Abuser) -> None:
    """Pings of the protocol without end."""
    await _flood(abuser, text({"type": "ping"}) * 200)


async def questions(abuser: Abuser) -> None:
    """Questions without end: ten are answered, the others refused."""
    ask = [
        text({"type": "user_message", "client_msg_id": f"f-{n}", "content": "Allergies?", "patient_id": "7823"})
        for n in range(200)
    ]
    await _flood(abuser, b"".join(ask))


async def garbage(abuser: Abuser) -> None:
    """Bytes that are no frames, again as soon as it is closed."""
    while abuser.is_on:
        peer = await abuser.phone()
        peer.send(frame(TEXT, b"garbage") * 50)
        abuser.seen[await abuser.end_of(peer)] += 1


async def bombs(abuser: Abuser) -> None:
    """A megabyte in a kilobyte, though compression was not agreed; and frames of 10 MB."""
    squeeze = zlib.compressobj(wbits=-15)
    small = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    while abuser.is_on:
        for bomb in (frame(TEXT, small, rsv=4), frame(TEXT, b" " * 10_000_000)):
            peer = await abuser.phone()
            peer.send(bomb)
            abuser.seen[await abuser.end_of(peer)] += 1


async def slow_reader(abuser: Abuser) -> None:
    """Has an answer of its session sent again and again and never reads; when all is over it looks what it was told."""
    ask = text({"type": "user_message", "client_msg_id": "s-1", "content": "Summarise.", "patient_id": "7823"})
    first = await phone(abuser.url, abuser.user, DEPARTMENT, abuser.token, session_id="sess_slow")
    first.send(ask)
    await first.until("ai_response")
    await first.leave()
    peer = await phone(abuser.url, abuser.user, DEPARTMENT, abuser.token, session_id="sess_slow", buffer_bytes=4_096)
    await abuser.pour(peer, ask * 20)
    abuser.seen[await abuser.end_of(peer)] += 1


async def pings(abuser: Abuser) -> None:
    """Pings of the socket without reading a pong."""
    peer = await abuser.phone(buffer_bytes=4_096)
    await abuser.pour(peer, frame(PING, b"x" * 125) * 100)
    abuser.seen[await abuser.end_of(peer, 2.0)] += 1


async def half_open(abuser: Abuser) -> None:
    """500 sockets that say nothing, half a line, or shake hands and say nothing more."""

    async def one(number: int) -> None:
        peer = await Peer.dial(abuser.url)
        match number % 3:
            case 1:
                peer.send(b"GET /chat/cardiology/dr.abuser HTTP/1.1\r\nHost: x\r\nX-")
            case 2:
                await peer.open(f"/chat/{DEPARTMENT}/{abuser.user}")
        abuser.seen[await abuser.end_of(peer)] += 1

    await asyncio.gather(*(one(number) for number in range(500)))


async def slow_heads(abuser: Abuser) -> None:
    """100 requests whose heads come drop by drop."""

    async def one() -> None:
        peer = await Peer.dial(abuser.url)
        ending = asyncio.create_task(abuser.end_of(peer))
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while not ending.done():
            peer.send(b"X-a: b\r\n")
            await asyncio.wait([ending], timeout=0.5)
        abuser.seen[ending.result()] += 1

    await asyncio.gather(*(one() for _ in range(100)))


#: Each abuse, for how long, and what becomes of the abuser: each of its lines ends in one of these.
ABUSES: Mapping[str, tuple[Callable[[Abuser], Coroutine[Any, Any, None]], float, frozenset[str]]] = {
    "frames": (frames, 4.0, frozenset({"open", "pong"})),
    "questions": (questions, 4.0, frozenset({"open", "accepted", "facts", "ai_response", "rate_limited"})),
    "garbage": (garbage, 4.0, frozenset({"4507"})),
    "bombs": (bombs, 4.0, frozenset({"1002", "1009"})),
    # Read late, its code may be gone with the line; the gateway has counted it.
    "slow_reader": (slow_reader, 8.0, frozenset({"4002", "cut"})),
    "pings": (pings, 4.0, frozenset({"open", "4002"})),
    "half_open": (half_open, 4.0, frozenset({"cut", "4501"})),
    "slow_heads": (slow_heads, 4.0, frozenset({"cut"})),
}
#: Alerts come on the abuser's phone too, and its session has opened.
_ALWAYS = frozenset({"snapshot", "system_notification", "alert_update", "welcome"})


# --- the others ---------------------------------------------------------------------------------------------


class Others:
    """Ten phones of the department and who raises alerts for them."""

    def __init__(self, place: Hospital) -> None:
        self._place = place
        self._phones: list[Peer] = []
        self._reading: list[asyncio.Task[None]] = []
        self._raised_s: dict[str, float] = {}
        self._open: list[tuple[str, str]] = []
        #: Seconds from raising to screen of each alert on each phone.
        self.latencies_s: list[float] = []
        self.got: list[Counter[str]] = []

    async def __aenter__(self) -> Others:
        for number in range(VICTIMS):
            user = f"dr.other{number}"
            peer = await phone(self._place.url, user, DEPARTMENT, token_for(self._place, user, DEPARTMENT))
            self._phones.append(peer)
            self.got.append(Counter())
            self._reading.append(asyncio.create_task(self._read(peer, self.got[-1])))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._reading:
            task.cancel()
        for peer in self._phones:
            await peer.leave()

    async def _read(self, peer: Peer, got: Counter[str]) -> None:
        while True:
            found = await peer.message()
            if found["type"] == "system_notification" and found["event"] == "raised":
                now_s = time.perf_counter()
                if found["content"] in self._raised_s:
                    self.latencies_s.append(now_s - self._raised_s[found["content"]])
                got[found["content"]] += 1

    async def beats(self, name: str, until: Callable[[], bool]) -> int:
        """Raise alerts until then, wait for the last on every phone, and return how many there were."""
        self.latencies_s.clear()
        count = 0
        while not until() or count < 20:
            content = f"{name} {count}"
            self._raised_s[content] = time.perf_counter()
            await asyncio.to_thread(self._raise, content)
            count += 1
            await asyncio.sleep(BEAT_S)
        async with asyncio.timeout(30):
            while any(got[f"{name} {count - 1}"] == 0 for got in self.got):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(self._stand_down)
        return count

    def _stand_down(self) -> None:
        """Open alerts are in every snapshot: the next abuser is not to find hundreds."""
        for alert_id, token in self._open:
            call(
                self._place.url, f"/v1/alerts/{alert_id}/stand_down", "POST", b"", {"Authorization": f"Bearer {token}"}
            )
        self._open.clear()

    def _raise(self, content: str) -> None:
        body = json.dumps({"content": content, "priority": "low"}).encode()
        key = content.replace(" ", "-")
        # Many alerts of one person would be joined to one.
        token = token_for(self._place, f"dr.{key}", DEPARTMENT)
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        found = call(self._place.url, f"/v1/departments/{DEPARTMENT}/alerts", "POST", body, headers)
        assert found.status == 201, found
        self._open.append((found.json()["alert_id"], token))


def share_ms(latencies_s: list[float], share: float) -> float:
    """The latency that this share of all is at or below, in milliseconds."""
    ordered = sorted(latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, round(share * len(ordered)))]


class Found:
    """What one abuse came to."""

    def __init__(self, seen: Mapping[str, int], beats: int, missed: list[str], latencies_s: list[float]) -> None:
        self.seen, self.beats, self.missed, self.latencies_s = seen, beats, missed, latencies_s
        self.grown_bytes = self.most_bytes = self.files = 0
        #: Of one core, of the gateway's process.
        self.cpu_share = 0.0
        #: Connections that the gateway closed meanwhile, by code.
        self.closes: dict[str, float] = {}


async def beside(place: Hospital, others: Others, name: str, run: int = 0) -> Found:
    """Let the others have alerts while this abuser is at work; "nothing" is the time without one."""
    pid = gateway_pid(place)
    before_bytes, before_files, most_bytes = rss_bytes(pid), open_files(pid), 0
    label = f"{name}{run}"
    began_s, used_s, closed = time.monotonic(), cpu_s(pid), closes(place)
    if name == "nothing":
        end_s = time.monotonic() + 4.0
        beats = await others.beats(label, lambda: time.monotonic() >= end_s)
        seen: dict[str, int] = {}
    else:
        token = token_for(place, f"{ABUSER}.{name}", DEPARTMENT)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.abuse.abusers", "--be", name, "--url", place.url, "--token", token),
            stdout=asyncio.subprocess.PIPE,
            env=clean_environment(),
        )

        def is_over() -> bool:
            nonlocal most_bytes
            most_bytes = max(most_bytes, rss_bytes(pid))
            return process.returncode is not None

        beats = await others.beats(label, is_over)
        told, _ = await process.communicate()
        seen = json.loads(told)
    missed = [
        f"phone {number}: {label} {beat} {got[f'{label} {beat}']} times"
        for number, got in enumerate(others.got)
        for beat in range(beats)
        if got[f"{label} {beat}"] != 1
    ]
    found = Found(seen, beats, missed, list(others.latencies_s))
    found.cpu_share = (cpu_s(pid) - used_s) / (time.monotonic() - began_s)
    found.closes = {code: count - closed.get(code, 0) for code, count in closes(place).items()}
    # A line that is not read to its end is cut some seconds after its close.
    end_s = time.monotonic() + 20.0
    while open_files(pid) > before_files + 2 and time.monotonic() < end_s:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    found.files = open_files(pid) - before_files
    found.grown_bytes, found.most_bytes = rss_bytes(pid) - before_bytes, max(0, most_bytes - before_bytes)
    return found


def strays(name: str, seen: Mapping[str, int]) -> set[str]:
    """What the abuser saw and should not have."""
    return set(seen) - ABUSES[name][2] - _ALWAYS


async def _measure(place: Hospital, names: list[str], rounds: int) -> bool:
    is_well, run = True, itertools.count()
    async with Others(place) as others:
        await beside(place, others, "nothing", next(run))
        for name in names:
            quiet: list[float] = []
            abused: list[float] = []
            for _ in range(rounds):
                calm = await beside(place, others, "nothing", next(run))
                found = await beside(place, others, name, next(run))
                quiet += calm.latencies_s
                abused += found.latencies_s
                wrong = strays(name, found.seen)
                is_well &= not (found.missed or wrong)
                print(
                    f"  gateway's core {found.cpu_share:.0%} ({calm.cpu_share:.0%}), "
                    f"memory at most +{found.most_bytes / 1e6:.1f} MB, after {found.grown_bytes / 1e6:+.1f} MB, "
                    f"files {found.files:+d}, missed {len(found.missed)}, {dict(found.seen)}"
                    + (f" UNEXPECTED {wrong}" if wrong else ""),
                    flush=True,
                )
            with_it, without = ([share_ms(each, share) for share in (0.5, 0.99)] for each in (abused, quiet))
            print(
                f"{name:<12} {len(abused)} alerts in {rounds} rounds: "
                f"p50 {with_it[0]:.1f} ms (without {without[0]:.1f}), "
                f"p99 {with_it[1]:.1f} ms (without {without[1]:.1f}), ratio of p99 {with_it[1] / without[1]:.2f}",
                flush=True,
            )
    return is_well


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.abusers", description=__doc__)
    parser.add_argument("--only", choices=sorted(ABUSES), action="append", help="one kind; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="with and without it, of each kind (default: 3)")
    for name in ("--be", "--url", "--token"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.be:
        os.nice(19)
        act, seconds, _ = ABUSES[options.be]
        abuser = Abuser(options.url, f"{ABUSER}.{options.be}", options.token, seconds)
        asyncio.run(act(abuser))
        print(json.dumps(abuser.seen))
        return 0
    with hospital(env=ENV) as place:
        is_well = asyncio.run(_measure(place, options.only or list(ABUSES), options.rounds))
        faults = faults_in(place.up.log())
    print("\n".join(faults[:20]))
    return 0 if is_well and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
