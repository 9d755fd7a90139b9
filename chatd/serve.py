"""One gateway process: uvicorn around the application, drained before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
from redis.exceptions import RedisError
from starlette.applications import Starlette

from chatd import app as application
from chatd import logs, tasks
from chatd.checks.redis_safety import RedisRefused, admit
from chatd.gateway.limits import LineLimits
from chatd.gateway.transport import protocols
from chatd.hardening import no_core_dumps
from chatd.places import Places
from chatd.readiness import readiness
from chatd.settings import Settings, SettingsError

log = structlog.get_logger(__name__)

#: Files beside the phones' sockets: Redis, the ledger and its log, modules, a backlog that is being accepted.
_OTHER_FILES = 256
#: Connections that the kernel holds while the loop is busy: a whole hospital comes back at once.
_BACKLOG = 2048
#: How long the thread that computes facts may keep the event loop waiting; Python's own 5 ms would be a quarter of
#: the time in which ``accepted`` is to be sent.
_SWITCH_S = 0.0005
#: After the drain nothing is left to wait for; uvicorn's own grace is for stray HTTP requests.
_GRACE_S = 2
_READY_POLL_S = 0.05
#: A Redis that did not answer at the start is asked again so often.
_REDIS_AGAIN_S = 1.0
#: The gateway's user and its group, to which the proxy belongs.
_SOCKET_MODE = 0o660


class GatewayServer(uvicorn.Server):
    """uvicorn's server that drains before it stops, instead of closing every phone in one instant with 1012."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signals = 0

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.config.uds is not None:
            # uvicorn lets everybody in.
            os.chmod(self.config.uds, _SOCKET_MODE)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        if self.config.uds is not None:
            # While it still listens, the path is its own: a successor may take it from here on.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.config.uds)
        await super().shutdown(sockets=sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now."""
        self._signals += 1
        if self._signals > 1 or self._loop is None or not self.started:
            self.force_exit = self._signals > 1
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self.stop_soon)

    def stop_soon(self) -> None:
        """Begin the drain; further calls change nothing."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._app.state.node.drain()
        finally:
            self.should_exit = True


def line(app: Callable[..., Any], settings: Settings, *, uds: str | None = None) -> uvicorn.Config:
    """uvicorn's options below an application: chatd's two protocols with their bounds.

    Args:
        uds: The Unix socket to listen on; None: the address of ``settings``.
    """
    http, websocket = protocols(LineLimits(frames_per_s=settings.frames_per_second))
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=uds,
        http=http,
        ws=websocket,
        ws_max_size=settings.max_frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        ws_ping_timeout=None,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_S,
        lifespan="on",
    )


def serve(settings: Settings, places: Places, *, supervised: bool) -> int:
    """Run a gateway until it is told to stop; returns the exit status.

    Prints ``ready http://HOST:PORT``, or ``ready unix:PATH``, once questions can be answered.

    Args:
        supervised: Stop too when standard input ends: the ``chatd up`` that holds its other end is gone.

    Raises:
        SettingsError: the Unix socket is somebody's, or its path is no socket's.
        RedisRefused: Redis could bring chat to a disk.
    """
    no_core_dumps()
    uds = unix_socket(settings.uds)
    writer = logs.set_up(settings.log_level)
    sys.setswitchinterval(_SWITCH_S)
    make_room(settings.max_connections + settings.redis_max_connections + _OTHER_FILES)
    app = application.build(settings, places)
    config = line(app, settings, uds=uds)
    server = GatewayServer(config, app)
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(server, app, settings, places, supervised=supervised))
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        writer.close()
    return 0


def unix_socket(path: str) -> str | None:
    """``path`` as an absolute one, free to listen on; None for an empty one. What a killed gateway left is taken.

    uvicorn would take the path away from a gateway that is listening there, which then hears of no new phone.

    Raises:
        SettingsError: somebody listens there, or it is a file of another kind.
    """
    if not path:
        return None
    place = Path(path).absolute()
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(place.lstat().st_mode):
            raise SettingsError("CHATD_UDS names a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(ConnectionRefusedError):
            probe.connect(str(place))
            raise SettingsError("CHATD_UDS names a socket on which somebody listens")
    return str(place)


def make_room(files: int) -> None:
    """Raise the soft limit of open files to ``files``; one line of the log where the hard limit is below.

    Without room the next phone would wait in the kernel's backlog and hear nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    # Some systems refuse what they name as their hard limit.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now < files:
        log.warning("few_files", files=now, wanted=files)


async def _serve(
    server: GatewayServer, app: Starlette, settings: Settings, places: Places, *, supervised: bool
) -> None:
    admission = _Admission(settings, places)
    is_admitted = await admission.ask()
    helpers = [asyncio.create_task(_announce(server, app))]
    if not is_admitted:
        helpers.append(asyncio.create_task(admission.keep_asking(server)))
    if supervised:
        _stop_with_parent(server, asyncio.get_running_loop())
    try:
        await server.serve()
    finally:
        await tasks.end(helpers)
    if admission.refused is not None:
        raise admission.refused


class _Admission:
    """Whether this gateway may use its Redis. One that does not answer does not keep it from starting: alerts come from
    the ledger. It is looked at as soon as it answers, and where it is refused then, the gateway ends."""

    def __init__(self, settings: Settings, places: Places) -> None:
        self._settings = settings
        self._url = places.redis_url
        self.refused: RedisRefused | None = None

    async def ask(self) -> bool:
        """False: it did not answer. Raises RedisRefused."""
        try:
            await admit(self._url, timeout_s=self._settings.redis_timeout_s, is_overridden=self._settings.redis_unsafe)
        except (RedisError, OSError) as error:
            log.warning("redis_not_checked", error=logs.error_name(error))
            return False
        return True

    async def keep_asking(self, server: GatewayServer) -> None:
        try:
            while not await self.ask():  # noqa: ASYNC110 - asks Redis each time
                await asyncio.sleep(_REDIS_AGAIN_S)
        except RedisRefused as error:
            self.refused = error
            server.stop_soon()


async def _announce(server: GatewayServer, app: Starlette) -> None:
    while not server.started or not (await readiness(app.state.node)).ready:  # noqa: ASYNC110 - asks Redis each time
        await asyncio.sleep(_READY_POLL_S)
    # What is alive now stays alive: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    if server.config.uds is not None:
        print(f"ready unix:{server.config.uds}", flush=True)
        return
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"ready http://{shown}:{port}", flush=True)


def _stop_with_parent(server: GatewayServer, loop: asyncio.AbstractEventLoop) -> None:
    def wait_for_end() -> None:
        # The descriptor, not sys.stdin: its lock would be held by this thread when the interpreter ends.
        while os.read(0, 1):
            pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(server.stop_soon)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()


def ignore_interrupt() -> None:
    """Ctrl-C reaches the whole terminal group; a supervised gateway waits for its supervisor's word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
