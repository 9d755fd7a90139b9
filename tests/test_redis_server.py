"""The tests' private Redis does what the fault tests rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.redis_server import RedisServer


async def test_redis_fixture_is_empty_and_answers_bytes(redis: Redis) -> None:
    """The fixture's Redis holds nothing at first and answers in bytes."""
    assert await redis.dbsize() == 0
    await redis.set("a", "b")
    assert await redis.get("a") == b"b"


async def test_redis_server_keeps_nothing_on_disk(redis: Redis) -> None:
    """The server neither saves snapshots nor an append-only file."""
    assert (await redis.config_get("save"))["save"] == ""
    assert (await redis.config_get("appendonly"))["appendonly"] == "no"


async def test_redis_server_restart_loses_everything(own_redis_server: RedisServer, own_redis: Redis) -> None:
    """A kill and a restart give an empty server on the same socket."""
    await own_redis.set("a", "b")
    own_redis_server.restart()
    assert await own_redis.get("a") is None


async def test_redis_server_stop_leaves_no_dump(own_redis_server: RedisServer, own_redis: Redis) -> None:
    """A server ended with SIGTERM leaves no snapshot in its folder."""
    await own_redis.set("a", "b")
    own_redis_server.stop()
    assert [path.name for path in own_redis_server.directory.iterdir()] == ["log"]


async def test_redis_server_killed_refuses(own_redis_server: RedisServer) -> None:
    """After ``kill`` nobody answers on the socket."""
    own_redis_server.kill()
    client = own_redis_server.client(retry=None)
    with pytest.raises(RedisConnectionError):
        await client.ping()
    await client.aclose()
