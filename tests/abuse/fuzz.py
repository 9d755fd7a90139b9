"""Changed frames against the codec and the session's rules, and against a real gateway over sockets and HTTP.

``python -m tests.abuse.fuzz --frames 1000000 --seeds 5`` judges each frame within this process and sends it to a
gateway, but most of those that would end a connection; ``--frames 200000 --seed 3`` does a part of it. It prints what
came of them and the processor time that it took; anything unhandled, a close with 1011 and a status of 500 or more end
it with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from protocols import codec
from protocols.errors import RemoteProtocolError
from protocols.frames import Error, Hello
from protocols.session import Session, SessionRules
from tests.abuse.gateway import ENV, cpu_s, faults_in, gateway_pid, rss_bytes, token_for
from tests.abuse.mutations import mutants
from tests.abuse.wire import BINARY, CLOSE, PING, PONG, TEXT, WAIT_S, Ended, Peer, frame, text
from tests.http_call import call
from tests.server import Hospital, hospital

USER, DEPARTMENT = "dr.santos.cardio", "cardiology"
LIMITS = codec.CodecLimits()
#: Processor time: no frame may hold up the others.
MOST_S = 0.5
#: What a gateway closes a connection over, though the frame is a good one.
_ENDING = frozenset({"session_end", "refresh"})
#: Strikes and paces have tests of their own; here they would end each connection after five frames.
FUZZ_ENV = {
    **ENV,
    "CHATD_MAX_STRIKES": "1000000",
    "CHATD_FRAMES_PER_SECOND": "1000000",
    "CHATD_COMMANDS_PER_SECOND": "1000000",
}
#: Frames that are sent before the answer to a ping is waited for.
_BATCH = 200
_PHONES = 4
#: Of the frames that end a connection so many are kept back for each one that is sent: each costs a new connection.
_KEPT_BACK = 24
_ROUTES = ("/v1/departments/cardiology/alerts", "/v1/fhir/CommunicationRequest", "/v1/demo/token")


class Fault(AssertionError):
    """A frame that was not handled; the text names seed and number, by which it is made again."""


def a_session() -> Session:
    """A session that is open, as a gateway has it."""
    session = Session(compat=False, now_ms=0, rules=SessionRules(max_strikes=5))
    session.receive(Hello(), 0)
    session.opened("e-91c", 0, 0)
    return session


def in_process(seed: int, count: int) -> Counter[str]:
    """Decode ``count`` frames, half JSON and half MessagePack, and let a session judge them; what came of them.

    Raises:
        Fault: anything but a frame or a refusal, a refusal whose words the frame's own may be in, or a slow one.
    """
    half = count // 2
    found = Counter(outcome for outcome, _ in judged(seed, count - half, is_msgpack=False))
    found.update(outcome for outcome, _ in judged(seed, half, is_msgpack=True))
    return found


def judged(seed: int, count: int, is_msgpack: bool) -> Iterator[tuple[str, bytes]]:
    """The first frames of a seed, each with what a session says to it. Raises Fault as ``in_process``."""
    session, now_ms = a_session(), 0
    for number, data in enumerate(itertools.islice(mutants(seed, msgpack=is_msgpack), count)):
        now_ms += 100
        began_s = time.thread_time()
        try:
            outcome = _judged(session, data, is_msgpack, now_ms)
        except Exception as error:
            raise Fault(f"seed {seed} frame {number}: {type(error).__name__}") from error
        if time.thread_time() - began_s > MOST_S:
            raise Fault(f"seed {seed} frame {number}: slow")
        if outcome in ("session_end", "4507"):
            session = a_session()
        yield outcome, data


def _judged(session: Session, data: bytes, is_msgpack: bool, now_ms: int) -> str:
    try:
        made = codec.decode(data, limits=LIMITS, msgpack=is_msgpack)
        # What was understood can be written and is understood again as the same.
        assert codec.decode(codec.encode(made), limits=LIMITS) == made
        session.receive(made, now_ms)
        return str(made.__struct_config__.tag)
    except RemoteProtocolError as error:
        refusal = Error(code=error.code, message="", retryable=False, detail=error.detail, client_msg_id=None)
        assert len(codec.encode(refusal)) < 400
        if error.strike and session.strike(now_ms) is not None:
            return "4507"
        return error.code.value


class Seen:
    """What a gateway did with what it was sent."""

    def __init__(self) -> None:
        self.sent = 0
        #: Frames that would have ended a connection, and were judged within this process alone.
        self.kept_back = 0
        #: What each of them is, as this process judges it.
        self.judged: Counter[str] = Counter()
        self.frames: Counter[str] = Counter()
        self.closes: Counter[int | None] = Counter()
        self.statuses: Counter[int] = Counter()

    @property
    def is_clean(self) -> bool:
        return not self.closes[1011] and not any(status >= 500 for status in self.statuses) and 0 not in self.statuses


async def _connected(url: str, user: str, token: str, is_msgpack: bool) -> Peer:
    peer = await Peer.dial(url)
    protocol = "chatd.v1.msgpack" if is_msgpack else "chatd.v1"
    status = await peer.open(f"/chat/{DEPARTMENT}/{user}", {"Sec-WebSocket-Protocol": protocol})
    assert status == 101, status
    peer.send(text({"type": "hello", "token": token}))
    return peer


def _ends(data: bytes, is_msgpack: bool, outcome: str) -> bool:
    """Whether a gateway closes the connection over a frame: by its line's rules, or because of what it says."""
    return len(data) > LIMITS.max_bytes or outcome in _ENDING or not (is_msgpack or _is_utf8(data))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _batches(seed: int, count: int, is_msgpack: bool, seen: Seen) -> Iterator[list[bytes]]:
    """A phone's frames, each judged here first; one that ends its connection goes alone: it takes the others along.

    Raises Fault as ``in_process``.
    """
    batch: list[bytes] = []
    ending = 0
    for outcome, data in judged(seed, count, is_msgpack):
        seen.judged[outcome] += 1
        if not _ends(data, is_msgpack, outcome):
            batch.append(data)
        else:
            if ending % (_KEPT_BACK + 1):
                seen.kept_back += 1
            else:
                yield [data]
            ending += 1
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _phone(place: Hospital, seed: int, count: int, is_msgpack: bool, seen: Seen) -> None:
    """One phone that sends its frames, and comes back where it was closed."""
    # Of a person of its own: nobody may hold four.
    who = f"dr.fuzz{seed}"
    line = (place.url, who, token_for(place, who, DEPARTMENT), is_msgpack)
    peer = await _connected(*line)
    opcode = BINARY if is_msgpack else TEXT
    for number, batch in enumerate(_batches(seed, count, is_msgpack, seen)):
        peer.send(b"".join(frame(opcode, each) for each in batch))
        seen.sent += len(batch)
        mark = str(number).encode()
        peer.send(frame(PING, mark))
        try:
            async with asyncio.timeout(6 * WAIT_S):
                await _until_pong(peer, mark, seen)
        except Ended as ended:
            seen.closes[ended.code] += 1
            await peer.leave()
            peer = await _connected(*line)
    peer.send(frame(CLOSE, b"\x03\xe8"))
    await peer.leave()


async def _until_pong(peer: Peer, mark: bytes, seen: Seen) -> None:
    while True:
        opcode, payload = await peer.next()
        if opcode == PONG and payload == mark:
            return
        if opcode == PING:
            peer.send(frame(PONG, payload))
        elif opcode in (TEXT, BINARY):
            seen.frames["error" if b"error" in payload[:16] else "other"] += 1


def _posts(url: str, token: str, seed: int, count: int, seen: Seen) -> None:
    """The same frames as bodies of the routes that take one."""
    host = urlsplit(url)
    line = http.client.HTTPConnection(host.hostname or "", host.port, timeout=WAIT_S)
    for number, body in enumerate(itertools.islice(mutants(seed), count)):
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": f"f-{seed}-{number}"}
        try:
            line.request("POST", _ROUTES[number % len(_ROUTES)], body, headers)
            answer = line.getresponse()
            answer.read()
            seen.statuses[answer.status] += 1
        except (http.client.HTTPException, ConnectionError):
            # A body that was refused unread ends its connection; the status came, or the next request has it.
            line.close()
    line.close()


async def over_sockets(place: Hospital, seed: int, count: int) -> Seen:
    """Judge ``count`` frames here and send them to the gateway, and a fiftieth as many over HTTP."""
    seen, token = Seen(), token_for(place, USER, DEPARTMENT)
    each = -(-count // _PHONES)
    phones = [_phone(place, seed * 1_000 + n, each, n == 0, seen) for n in range(_PHONES)]
    await asyncio.gather(*phones, asyncio.to_thread(_posts, place.url, token, seed, max(count // 50, 50), seen))
    assert call(place.url, "/health/live").status == 200
    return seen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000, help="in all (default: 20000)")
    parser.add_argument("--seeds", type=int, default=5, help="from 1 to this (default: 5)")
    parser.add_argument("--seed", type=int, help="this one alone, with all the frames")
    parser.add_argument("--no-gateway", action="store_true", help="within this process only")
    options = parser.parse_args(arguments)
    seeds = range(1, options.seeds + 1) if options.seed is None else (options.seed,)
    each, is_clean = options.frames // len(seeds), True
    if options.no_gateway:
        for seed in seeds:
            began_s = time.process_time()
            found = in_process(seed, each)
            took_s = time.process_time() - began_s
            print(
                f"seed {seed}: {each} frames, {took_s * 10_000 / each:.1f} s per 10,000 of processor time, "
                f"{dict(found.most_common())}",
                flush=True,
            )
        return 0
    with hospital(env=FUZZ_ENV) as place:
        pid = gateway_pid(place)
        before = rss_bytes(pid)
        for seed in seeds:
            began_s, used_s = time.process_time(), cpu_s(pid)
            seen = asyncio.run(over_sockets(place, seed, each))
            is_clean &= seen.is_clean
            own_s, theirs_s = time.process_time() - began_s, cpu_s(pid) - used_s
            print(
                f"seed {seed}: {seen.sent} sent and {seen.kept_back} kept back, processor time per 10,000 "
                f"{own_s * 10_000 / each:.1f} s here and {theirs_s * 10_000 / each:.1f} s of the gateway, "
                f"{dict(seen.judged.most_common())}, {dict(seen.frames)}, closes {dict(seen.closes)}, "
                f"statuses {dict(seen.statuses)}, memory +{(rss_bytes(pid) - before) / 1e6:.1f} MB",
                flush=True,
            )
        faults = faults_in(place.up.log())
        is_clean &= not faults and gateway_pid(place) == pid
    print("\n".join(faults))
    print("clean" if is_clean else "NOT CLEAN")
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
