"""Addresses of a Redis that Sentinel keeps."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError

from context.sentinel import PrimaryPool, SentinelAddress, is_sentinel, parse
from context.store import connect


def test_parse_takes_an_address_apart() -> None:
    """Hosts with and without a port, an IPv6 one, quoted signs in the password, and the files of TLS."""
    assert parse("sentinel://chatd:p%40ss%2F:w@a.example:26379,b.example,[::1]:99/chatd") == SentinelAddress(
        sentinels=(("a.example", 26379), ("b.example", 26379), ("::1", 99)),
        name="chatd",
        username="chatd",
        password="p@ss/:w",
        tls=None,
    )
    secure = parse("sentinels://a.example/chatd?ca=/ca.pem&cert=/c.pem&key=/k.pem")
    assert secure.sentinels == (("a.example", 26380),)
    assert secure.tls == {"ssl_ca_certs": "/ca.pem", "ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem"}
    assert (secure.username, secure.password) == (None, None)


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://u:geheim@a.example",
        "sentinel://u:geheim@/chatd",
        "sentinel://u:geheim@a:1,,b:2/chatd",
        "sentinel://u:geheim@a:port/chatd",
        "sentinel://u:geheim@a:1/chatd/0",
        "sentinel://u:geheim@a:1/chatd?ca=/x",
        "sentinels://u:geheim@a:1/chatd?db=1",
    ],
)
def test_parse_refuses_what_is_none_without_repeating_it(url: str) -> None:
    """An address may hold a password: the refusal says what is wanted and nothing of what was given."""
    with pytest.raises(ValueError, match="sentinel") as raised:
        parse(url)
    assert "geheim" not in str(raised.value)
    assert is_sentinel(url)


def test_other_addresses_are_no_sentinels() -> None:
    """What the client library knows stays its own."""
    assert not any(is_sentinel(url) for url in ("redis://a:1/0", "rediss://a", "unix:///run/s", ""))


async def test_no_sentinel_is_an_error_of_redis() -> None:
    """Where no Sentinel answers, a command fails as with any Redis that is away, and in bounded time."""
    client = connect("sentinel://127.0.0.1:1,127.0.0.1:2/chatd", timeout_s=2.0)
    assert isinstance(client.connection_pool, PrimaryPool)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(RedisError):
                await client.get("chatd:x")
    finally:
        await client.aclose()
