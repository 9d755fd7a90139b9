"""deploy/redis: chatd works on it as its own user, and nothing of it reaches a disk."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from tests.chat_client import ChatClient
from tests.redis_server import redis_executable
from tests.server import STOP_S, hospital

pytestmark = pytest.mark.front

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "redis"
START_S = 20.0
PASSWORD = secrets.token_hex(16)


class Deployed:
    """A Redis on the shipped files, in a folder of its own."""

    def __init__(self, *extra: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dr-"))
        users = (DEPLOY / "users.acl").read_text()
        users = users.replace("SHA256-OF-THE-PASSWORD", hashlib.sha256(PASSWORD.encode()).hexdigest())
        (self.folder / "users.acl").write_text(users)
        conf = (DEPLOY / "redis.conf").read_text()
        conf = conf.replace("/etc/chatd/redis-users.acl", str(self.folder / "users.acl"))
        conf = conf.replace("/run/chatd-redis", str(self.folder))
        (self.folder / "redis.conf").write_text(conf)
        self.process = subprocess.Popen(
            [redis_executable(), str(self.folder / "redis.conf"), *extra],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + START_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except RedisError:
                assert self.process.poll() is None, "redis-server refuses the shipped configuration"
                assert time.monotonic() < give_up
                time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"unix://chatd:{PASSWORD}@{self.folder}/redis.sock"

    def client(self) -> Redis:
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def files(self) -> set[str]:
        """What lies in its folder, beside the socket."""
        return {path.name for path in self.folder.iterdir()} - {"redis.sock"}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(STOP_S)


@pytest.fixture
def deployed() -> Iterator[Deployed]:
    """A running Redis of this test's own."""
    made = Deployed()
    yield made
    made.stop()
    shutil.rmtree(made.folder)


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "save", "1 1"),
        ("SAVE",),
        ("BGSAVE",),
        ("BGREWRITEAOF",),
        ("SHUTDOWN", "SAVE"),
        ("MONITOR",),
        ("SLOWLOG", "GET"),
        ("DEBUG", "SLEEP", "0"),
        ("ACL", "WHOAMI"),
        ("ACL", "SETUSER", "x"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("MODULE", "LOAD", "/x.so"),
        ("CLIENT", "LIST"),
        ("GET", "other:key"),
        ("PUBLISH", "other", "x"),
    ],
    ids=lambda command: "_".join(command[:2]),
)
def test_user_of_chatd_may_not(deployed: Deployed, command: tuple[str, ...]) -> None:
    """What would write a file, show others' words or change the server is refused to chatd's own user."""
    with deployed.client() as client, pytest.raises(ResponseError, match=r"no permissions|No permissions|not allowed"):
        client.execute_command(*command)


def test_nobody_comes_in_without_a_name(deployed: Deployed) -> None:
    """The default user is off."""
    with (
        Redis(unix_socket_path=str(deployed.folder / "redis.sock"), retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(RedisError),
    ):
        client.ping()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_its_end_leaves_no_file(deployed: Deployed, number: signal.Signals) -> None:
    """Told to stop with data in it, Redis writes no dump."""
    before = deployed.files()
    with deployed.client() as client:
        client.set("chatd:x", "CANARY")
    deployed.stop(number)
    assert deployed.files() == before


def _refused(made: Deployed) -> dict[str, int]:
    """How often each command was refused, as no right of the caller's."""
    with made.client() as client:
        calls: dict[str, dict[str, int]] = client.info("commandstats")
    return {name: counts["rejected_calls"] for name, counts in calls.items() if counts["rejected_calls"]}


async def test_chatd_works_as_its_user() -> None:
    """A whole demo hospital on this Redis: a question is answered, an alert rings, and no command was refused."""
    made = Deployed()
    try:
        with hospital("--redis", made.url, env={"CHATD_SWEEP_INTERVAL_S": "0.2"}) as place:
            # A gateway that starts tries what must be refused to it.
            tried = _refused(made)
            token = place.token()
            doctor = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
            await doctor.connect()
            assert (await doctor.ask("Allergies?", "7823"))[-1]["status"] == "completed"
            assert place.run("alert", "--data-dir", "DIR", "cardiology", "Bed 4", check=False).returncode == 0
            await doctor.until("system_notification")
            await doctor.cut()
            assert (await doctor.connect())["resumed"] is True
            await doctor.close()
            assert "NoPermission" not in place.up.log()
            refused = _refused(made)
            # A version of the library and one of Redis.
            assert {name for name in refused if refused[name] > tried.get(name, 0)} <= {"cmdstat_client|setinfo"}
    finally:
        made.stop()
    assert made.files() == {"users.acl", "redis.conf"}
    shutil.rmtree(made.folder)
