"""A Redis that Sentinel keeps: its address, and a pool whose connections lead to whoever is the primary now."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff

#: In place of redis:// and rediss://.
SCHEMES: Final = ("sentinel", "sentinels")
_PORT: Final = 26_379
_PORT_TLS: Final = 26_380
#: A Sentinel that has gone with its machine is passed over after this; three of them still fit into one wait for Redis.
_ASK_S: Final = 0.5
#: What an address may say of its TLS, as the client library calls it.
_FILES: Final = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}


class SentinelAddress(msgspec.Struct, frozen=True, kw_only=True):
    """``sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT,HOST:PORT/NAME``: who is asked, for what, and who signs in there.

    User and password are those of Redis; Sentinels are asked without. ``sentinels://``: both by TLS, with
    ``?ca=FILE&cert=FILE&key=FILE``.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    username: str | None
    password: str | None
    tls: dict[str, str] | None


def is_sentinel(url: str) -> bool:
    return url.partition("://")[0].lower() in SCHEMES


def parse(url: str) -> SentinelAddress:
    """Take an address apart.

    Raises:
        ValueError: it is none; the text holds nothing of it, as there may be a password in it.
    """
    parts = urlsplit(url)
    is_tls = parts.scheme.lower() == "sentinels"
    signing, _, hosts = parts.netloc.rpartition("@")
    username, _, password = signing.partition(":")
    name, query = parts.path.strip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))
    try:
        sentinels = tuple(_host(each, _PORT_TLS if is_tls else _PORT) for each in hosts.split(","))
    except ValueError:
        raise ValueError("sentinel:// needs HOST:PORT,HOST:PORT,HOST:PORT") from None
    if not name or "/" in name:
        raise ValueError("sentinel:// needs the name of the primary behind the hosts: /NAME")
    if query.keys() - _FILES.keys() or (query and not is_tls):
        raise ValueError("sentinels:// takes ?ca=FILE&cert=FILE&key=FILE, and sentinel:// nothing")
    return SentinelAddress(
        sentinels=sentinels,
        name=unquote(name),
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls={_FILES[key]: value for key, value in query.items()} if is_tls else None,
    )


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port


class PrimaryPool(BlockingConnectionPool):
    """Connections to the primary that the Sentinels name; each new connection asks, those that ask at once share it.

    When they name another one, idle connections are closed, and busy ones as they come back. A primary that was
    replaced refuses writes, and a connection that meets this asks anew. The library's own pool of this kind does
    not wait where all connections are in use.
    """

    #: What the library's connections ask their pool for.
    is_master = True
    check_connection = False

    def __init__(self, address: SentinelAddress, **options: Any) -> None:
        tls: dict[str, Any] = {} if address.tls is None else dict(address.tls)
        timeouts = {"socket_timeout": _ASK_S, "socket_connect_timeout": _ASK_S, "retry": Retry(NoBackoff(), 0)}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.sentinels, sentinel_kwargs={**timeouts, **tls, **({} if address.tls is None else {"ssl": True})}
        )
        self._name = address.name
        self._primary: tuple[str, int] | None = None
        self._asking: asyncio.Task[tuple[str, int]] | None = None
        super().__init__(
            connection_class=SentinelManagedConnection if address.tls is None else SentinelManagedSSLConnection,
            # Who it is stands in no setting; this is not an address of this machine.
            host=f"primary-of-{address.name}",
            username=address.username,
            password=address.password,
            **tls,
            **options,
        )
        self.connection_kwargs["connection_pool"] = weakref.proxy(self)

    async def get_master_address(self) -> tuple[str, int]:
        """Where the primary is now. Raises redis.exceptions.ConnectionError: no Sentinel knows one."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # Whoever asked may be gone before it fails.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> tuple[str, int]:
        host, port = await self._sentinel.discover_master(self._name)
        if self._primary not in (None, (host, port)):
            await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
            await self.disconnect(inuse_connections=False)
        self._primary = (host, port)
        return host, port

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()
