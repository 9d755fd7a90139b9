"""What of a Redis is found to keep chat off the disk, and that finding it changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from chatd.checks import redis_safety
from chatd.checks.redis_safety import FORBIDDEN, RedisFacts, RedisRefused
from chatd.private_redis import _SETTINGS, PrivateRedis
from tests.redis_server import USER_RULES, RedisServer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "redis"
SAFE = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-load": "swapdb",
    "slowlog-log-slower-than": "-1",
    "slowlog-max-len": "0",
}
WELL = RedisFacts(
    version="7.0.15",
    user="chatd",
    source="file",
    settings=SAFE,
    is_aof=False,
    snapshots=0,
    replicas=0,
    may=(),
    offset_ms=0.0,
    offset_within_ms=0.1,
)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis as ``redis.conf`` of deploy would have it, whose default user may do everything."""
    running = RedisServer("--repl-diskless-load", "swapdb", "--slowlog-log-slower-than", "-1")
    running.start()
    yield running
    running.close()


# --- what its settings say ----------------------------------------------------------------------------------


def test_shipped_redis_files_are_safe() -> None:
    """deploy/redis/redis.conf says all that chatd wants of a Redis, for every version that it is for."""
    for major in (6, 7, 8):
        settings = redis_safety.read_settings((DEPLOY / "redis.conf").read_text(), major=major)
        assert redis_safety.problems(msgspec.structs.replace(WELL, settings=settings)) == ()


def test_user_of_the_private_redis_is_that_of_deploy() -> None:
    """``chatd up`` and the tests give chatd's user the rights that deploy/redis/users.acl does, and no others."""
    (shipped,) = re.findall(r"^user chatd on #\S+ (.*)$", (DEPLOY / "users.acl").read_text(), flags=re.MULTILINE)
    told = f"on nopass {shipped}"
    assert told == USER_RULES
    assert f"user {{user}} {told}" in _SETTINGS


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "save"),
        ("save 60 1", "save"),
        ('save ""\nsave 60 1', "save"),
        ('save ""\nappendonly yes', "appendonly"),
        ('save ""\nAppendOnly "YES"', "appendonly"),
        ('save ""\nrepl-diskless-sync no', "repl-diskless-sync"),
        ('save ""\nrepl-diskless-load disabled', "repl-diskless-load"),
        ('save ""', "repl-diskless-load"),
    ],
)
def test_file_that_writes_to_a_disk_is_named(text: str, name: str) -> None:
    """A file that snapshots, logs or feeds replicas by files is refused by the name of the setting; so are defaults."""
    settings = redis_safety.read_settings(text, major=7)
    found = redis_safety.problems(msgspec.structs.replace(WELL, settings=settings))
    assert any(line.startswith(f"{name} is ") for line in found)


def test_last_word_of_a_file_counts() -> None:
    """As Redis reads it: the last line of a setting, all lines of ``save`` after the last empty one, no comments."""
    text = '# save 1 1\nsave 60 1\nsave ""\nappendonly yes\nappendonly no\nrepl-diskless-load swapdb\nbad "line'
    assert (
        redis_safety.problems(msgspec.structs.replace(WELL, settings=redis_safety.read_settings(text, major=7))) == ()
    )


def test_old_redis_feeds_replicas_by_files_unless_told() -> None:
    """Before 7.0 a file without ``repl-diskless-sync`` means files."""
    text = 'save ""\nrepl-diskless-load swapdb'
    old = redis_safety.read_settings(text, major=6)
    found = redis_safety.problems(msgspec.structs.replace(WELL, settings=old))
    assert any("repl-diskless-sync" in each for each in found)
    assert redis_safety.read_settings(text, major=7)["repl-diskless-sync"] == "yes"


@pytest.mark.parametrize(
    ("change", "states"),
    [
        ({}, ("ok", "ok")),
        ({"settings": {**SAFE, "save": "60 1"}}, ("fail", "ok")),
        ({"settings": {}, "source": "none"}, ("unseen", "ok")),
        ({"settings": {}, "source": "none", "is_aof": True}, ("fail", "ok")),
        ({"snapshots": 2}, ("warn", "ok")),
        ({"settings": {**SAFE, "slowlog-log-slower-than": "10", "slowlog-max-len": "9"}}, ("warn", "ok")),
        ({"may": ("MONITOR",)}, ("ok", "fail")),
        ({"may": None}, ("ok", "unseen")),
    ],
)
def test_findings_follow_what_was_seen(change: dict[str, object], states: tuple[str, str]) -> None:
    """Each fact gives the row that a person should see; overridden, a failure is a warning."""
    facts = msgspec.structs.replace(WELL, **change)
    assert tuple(each.state for each in redis_safety.findings(facts, is_overridden=False)) == states
    for each, state in zip(redis_safety.findings(facts, is_overridden=True), states, strict=True):
        assert each.state == ("warn" if state == "fail" else state)
        assert ("CHATD_REDIS_UNSAFE" in each.text) == (state == "fail")


# --- asking a real one --------------------------------------------------------------------------------------


async def test_own_user_may_do_nothing_forbidden(server: RedisServer) -> None:
    """The user of deploy is found to be without each forbidden command, and the settings stay unseen without a file."""
    facts = await redis_safety.look(server.chatd_url, timeout_s=5)
    assert (facts.user, facts.may, facts.source, facts.snapshots) == ("chatd", (), "none", 0)
    assert redis_safety.problems(facts) == ()
    assert facts.settings == {}


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_asking_does_nothing_of_what_it_asks(server: RedisServer, protocol: str) -> None:
    """A user that may do everything is told so, and yet Redis has saved nothing, runs on, and is nobody's replica."""
    client = server.client()
    await client.set("chatd:kept", "1")
    facts = await redis_safety.look(f"{server.url}?protocol={protocol}", timeout_s=5)
    names = {" ".join(command[:2]) if command[0] == "CONFIG" else command[0] for command in FORBIDDEN}
    assert facts.may is not None
    # Redis switches DEBUG off for everybody unless it is told otherwise.
    assert set(facts.may) == names - {"DEBUG"}
    assert facts.source == "redis"
    assert await client.get("chatd:kept") == b"1"
    assert (await client.info("persistence"))["rdb_saves"] == 0
    assert (await client.info("replication"))["role"] == "master"
    assert (await client.config_get("save"))["save"] == ""
    assert not any(each.get("flags") == "O" for each in await client.client_list())
    assert not (server.directory / "dump.rdb").exists()
    await client.aclose()


@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: "_".join(command[:2]))
async def test_each_right_is_seen(server: RedisServer, command: tuple[str, ...]) -> None:
    """One forbidden command more than deploy gives, and it is named; what it would do was not done."""
    name = " ".join(command[:2]) if command[0] == "CONFIG" else command[0]
    right = f"+{command[0]}|{command[1]}".lower() if command[0] == "CONFIG" else f"+{command[0]}".lower()
    client = server.client()
    await client.acl_setuser("chatd", enabled=True, nopass=True, commands=[right])
    facts = await redis_safety.look(server.chatd_url, timeout_s=5)
    assert facts.may == (() if name == "DEBUG" else (name,))
    assert await client.ping()
    await client.aclose()


async def test_settings_that_are_told_count(server: RedisServer) -> None:
    """Where the user may read settings, what the running Redis says counts, whatever its file says."""
    client = server.client()
    await client.config_set("save", "60 1")
    facts = await redis_safety.look(server.url, timeout_s=5)
    assert any(each.startswith("save is 60 1") for each in redis_safety.problems(facts))
    await client.aclose()


async def test_private_redis_is_safe_and_its_file_read(tmp_path: Path) -> None:
    """The Redis of ``chatd up`` passes its own check by its file, and leaves nothing but that file."""
    own = PrivateRedis(tmp_path)
    own.start()
    try:
        facts = await redis_safety.look(own.url, timeout_s=5)
        assert redis_safety.problems(facts) == ()
        assert (facts.source, facts.user) == ("file", "chatd")
        assert [each.state for each in redis_safety.findings(facts, is_overridden=False)] == ["ok", "ok"]
        client: Redis = Redis.from_url(own.url)
        await client.set("chatd:word", "canary")
        await client.aclose()
    finally:
        own.stop()
    assert set(os.listdir(tmp_path)) == {"redis.conf"}
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0


async def test_private_redis_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    """One that a killed supervisor left without chatd's user is stopped, and another one started in its place."""
    old = PrivateRedis(tmp_path)
    old.start()
    client: Redis = Redis(unix_socket_path=str(old.path))
    before = (await client.info("server"))["run_id"]
    await client.acl_deluser("chatd")
    await client.aclose()
    new = PrivateRedis(tmp_path)
    new.start()
    try:
        client = Redis.from_url(new.url)
        assert (await client.info("server"))["run_id"] != before
        await client.aclose()
    finally:
        new.stop()
        old.reap()


# --- the start ----------------------------------------------------------------------------------------------


async def test_start_is_refused_on_an_unsafe_redis(server: RedisServer) -> None:
    """Unless it is overridden, the text names what is wrong, what to do and the setting; nothing of the address."""
    with pytest.raises(RedisRefused) as refused:
        await redis_safety.admit(server.url, timeout_s=5, is_overridden=False)
    assert "MONITOR" in str(refused.value)
    assert "CHATD_REDIS_UNSAFE=true" in str(refused.value)
    assert str(server.socket_path) not in str(refused.value)


async def test_override_is_said_aloud(server: RedisServer) -> None:
    """Overridden it starts, with a warning each time; a safe one is told as such."""
    with capture_logs() as lines:
        await redis_safety.admit(server.url, timeout_s=5, is_overridden=True)
        await redis_safety.admit(server.chatd_url, timeout_s=5, is_overridden=False)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("redis_unsafe", "warning"),
        ("redis_checked", "info"),
    ]


async def test_redis_that_is_away_is_no_verdict(tmp_path: Path) -> None:
    """Nobody answers: an error of Redis, and neither admitted nor refused."""
    with pytest.raises((RedisError, OSError)):
        await redis_safety.admit(f"unix://{tmp_path}/none.sock", timeout_s=1, is_overridden=False)
