"""What a gateway looks at before the first phone, as processes: its Redis, its keys while it runs, no dump of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from context.seal import KeyRing
from tests.chat_client import ChatClient
from tests.redis_server import RedisServer
from tests.server import Hospital, Process, clean_environment, hospital

WAIT_S = 60.0


def events(log: str) -> list[dict[str, object]]:
    """The lines of a log that are JSON."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def test_gateway_does_not_start_on_an_unsafe_redis(own_redis_server: RedisServer, tmp_path: Path) -> None:
    """The default user may do everything: exit status 1, one line that says why and how it starts all the same."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "chatd", "serve", "--data-dir", str(tmp_path)),
            *("--port", "0", "--redis", own_redis_server.url),
        ],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("chatd: ")]
    assert "this Redis could bring chat to a disk" in line
    assert "MONITOR" in line
    assert "CHATD_REDIS_UNSAFE" in line
    assert "ready" not in done.stdout


def test_gateway_that_starts_before_an_unsafe_redis_ends(own_redis_server: RedisServer, tmp_path: Path) -> None:
    """While Redis is away it starts and says that it did not look; when one answers that may write, it ends."""
    own_redis_server.kill()
    gateway = Process(["serve", "--data-dir", str(tmp_path), "--port", "0", "--redis", own_redis_server.url])
    try:
        give_up = time.monotonic() + WAIT_S
        while "redis_not_checked" not in gateway.log():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert gateway.process.poll() is None
        own_redis_server.start()
        assert gateway.process.wait(WAIT_S) == 1
        assert "this Redis could bring chat to a disk" in gateway.log()
    finally:
        gateway.kill()
        gateway.close()


def test_override_starts_and_says_so(own_redis_server: RedisServer, tmp_path: Path) -> None:
    """With the setting a gateway starts, warns in its log, and says it in /health/ready."""
    arguments = ["serve", "--data-dir", str(tmp_path), "--port", "0", "--redis", own_redis_server.url]
    gateway = Process(arguments, {"CHATD_REDIS_UNSAFE": "true", "CHATD_DEMO": "true"})
    try:
        url = gateway.wait_ready()
        assert [line["level"] for line in events(gateway.log()) if line["event"] == "redis_unsafe"] == ["warning"]
        with urlopen(f"{url}/health/ready", timeout=20) as answer:  # noqa: S310 - our own server
            assert int(answer.headers["Age"]) >= 0
            ready = json.load(answer)
        assert (ready["ready"], ready["redis_safe"]) == (True, False)
    finally:
        gateway.stop()


@pytest.fixture(scope="module")
def place() -> Iterator[Hospital]:
    """A running ``chatd up`` with the demo hospital."""
    with hospital() as running:
        yield running


async def test_keys_are_rotated_under_running_sessions(place: Hospital) -> None:
    """A new first line in the key file is taken within seconds; the session goes on, and the new key seals."""
    file = place.data / "keys" / "seal.keys"
    phone = ChatClient(
        place.url, department="cardiology", user_id="dr.santos.cardio", token=place.token(), wait_s=WAIT_S
    )
    await phone.connect()
    before = (await phone.ask("Allergies?", "7823"))[-1]
    await phone.ask("Latest troponin?", "7823")
    KeyRing.load(file).add("k-rotated").save(file)
    give_up = time.monotonic() + WAIT_S
    while not any(line["event"] == "keys_renewed" for line in events(place.up.log())):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.1)
    after = (await phone.ask("Allergies?", "7823"))[-1]
    # What the old key sealed is read again from the log.
    await phone.cut()
    assert (await phone.connect())["resumed"] is True
    await phone.close()
    assert before["type"] == after["type"] == "ai_response"
    assert "enicillin" in after["content"]["text"]
    with place.redis() as redis:
        sealed = [redis.dump(key) or b"" for key in redis.scan_iter("chatd:*")]
    assert any(b"k-rotated" in each for each in sealed)


def test_doctor_sees_the_running_installation(place: Hospital) -> None:
    """Beside a chatd up the gateway, its Redis and its processes are looked at without a further word."""
    done = place.run("doctor", "--data-dir", "DIR", "--json", check=False)
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, done.stdout
    for check in ("gateway", "redis_settings", "redis_user", "seal_keys", "files", "migrations", "integrity"):
        assert found[check]["state"] == "ok", found[check]


def test_processes_are_not_dumped(place: Hospital) -> None:
    """The supervisor, its Redis and its gateway have no core files."""
    supervisor = place.up.process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    assert len(children) >= 2
    for pid in (supervisor, *children):
        (line,) = [
            line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file")
        ]
        assert line.split()[4:6] == ["0", "0"]
