"""``chatd infer``: one worker with its engine in a process of its own, and a supervisor that never loads anything.

The worker's process says twice a second how far the engine is (``worker.Pulse``, a JSON line on a pipe). The
supervisor kills it when it says nothing or the engine makes no progress, gives its jobs back at once, and starts it
again. What hangs inside an engine's library cannot be mended from within that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Final

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from chatd import logs, tasks
from chatd.clock import Clock, SystemClock, epoch_ms
from chatd.hardening import no_core_dumps
from chatd.inference.engine import Engine, EngineError, Finished, Generation
from chatd.inference.jobs import Piece, WorkerState
from chatd.inference.limits import limits_of
from chatd.inference.queue import JobQueue, QueueUnavailable
from chatd.inference.scripted import Fault, Script, ScriptedEngine, ScriptedTokens, write_sections
from chatd.inference.worker import Beginnings, PromptTokens, Pulse, Worker
from chatd.places import Places
from chatd.settings import Settings
from context.seal import Sealer
from context.store import connect
from protocols.errors import ChatdError

_PULSE_S: Final = 0.5
_TICK_S: Final = 0.1
#: A loaded worker's process that says nothing for this long stands still (SIGSTOP, a blocked loop, swapping).
SILENT_MS: Final = 5_000
#: Loading may hold Python's lock for long: gigabytes are read and kernels are compiled.
_LOADING_SILENT_MS: Final = 180_000
_BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_TELL_AFTER_S: Final = 2.0
_STOP_MARGIN_S: Final = 4.0
#: A worker's process without its supervisor ends for certain after this.
_ORPHAN_S: Final = 5.0
_BELL_READ_S: Final = 60.0
_CONNECTIONS: Final = 16
#: A model on the hub as its owner and its name.
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
#: Exit status of a worker's process that could not start and has said why.
CANNOT_START: Final = 3
#: Dead workers whose jobs could not be given back because Redis was away; their leases end anyway.
_MOST_DEAD: Final = 8


class InferError(ChatdError):
    """``chatd infer`` cannot start; the text says what to do."""


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """How the scripted engine behaves: time per token, and faults as ``scripted.Fault.parse`` reads them."""

    step_ms: float = 20.0
    faults: tuple[str, ...] = ()


# --- what can be told before anything is started ---


def check(settings: Settings) -> None:
    """Whether this engine can be started on this machine, as far as that shows from outside. Raises InferError."""
    if settings.engine == "none":
        raise InferError("no engine is named: give --engine mlx, vllm or scripted")
    if settings.engine == "scripted":
        return
    if not settings.model:
        what = "the model's folder" if settings.engine == "mlx" else "the folder with the served model's tokenizer"
        raise InferError(f"--engine {settings.engine} needs --model: {what}")
    module = {"mlx": "mlx_lm", "vllm": "httpx"}[settings.engine]
    if any(importlib.util.find_spec(name) is None for name in (module, "tokenizers")):
        raise InferError(
            f"what --engine {settings.engine} needs is not installed in {sys.prefix}: "
            f"run scripts/setup {settings.engine}"
        )
    folder = Path(settings.model).expanduser()
    if not folder.is_dir() and not _HUB_NAME.fullmatch(settings.model):
        raise InferError(f"there is no folder {folder}; chatd model tiny DIR makes a small one for trying things out")
    for name in ("config.json", "tokenizer.json") if settings.engine == "mlx" else ("tokenizer.json",):
        if folder.is_dir() and not (folder / name).is_file():
            raise InferError(f"{folder} is no model's folder: {name} is missing")
    if settings.engine == "vllm" and not settings.engine_url:
        raise InferError("--engine vllm needs --url: http://HOST:PORT or unix:/PATH of the server")


def _build(settings: Settings, clock: Clock, rehearsal: Rehearsal) -> tuple[Engine, PromptTokens]:
    """The engine, not started, and the tokens of its model; takes seconds. Raises EngineError, OSError, ValueError."""
    slots, reserved = settings.engine_slots, settings.engine_reserved_slots
    if settings.engine == "scripted":
        script = Script(write=write_sections, faults=tuple(map(Fault.parse, rehearsal.faults)))
        return (
            ScriptedEngine(script, slots=slots, reserved=reserved, clock=clock, step_ms=rehearsal.step_ms),
            ScriptedTokens(),
        )
    from chatd.inference.models import ModelError, revision
    from chatd.inference.tokens import Tokens, TokensError

    folder = _folder(settings.model)
    try:
        tokens = Tokens.load(folder)
        if settings.engine == "mlx":
            from chatd.inference.mlx import MlxEngine

            cache_bytes = settings.prefix_cache_bytes
            return MlxEngine(
                folder, slots=slots, reserved=reserved, prefix_cache_bytes=cache_bytes, clock=clock
            ), tokens
        from chatd.inference.vllm import VllmEngine

        # Without the weights the files would say nothing about the model that the server runs.
        known = revision(folder) if any(folder.glob("*.safetensors")) else ""
        return (
            VllmEngine(settings.engine_url, tokens, "", slots=slots, reserved=reserved, clock=clock, revision=known),
            tokens,
        )
    except (TokensError, ModelError) as error:
        raise EngineError(f"{folder}: {error}") from error


def _folder(model: str) -> Path:
    """The folder of a model; one on the hub is fetched into the hub's own cache, or found there."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model))
    except Exception as error:  # whatever the hub's library, the network or the disk raises
        raise EngineError(f"{model} is no folder and cannot be fetched ({type(error).__name__})") from error


def first_words(folder: Path) -> str:
    """Load a model with the mlx engine and return a few tokens of it. Raises EngineError."""
    from chatd.inference.mlx import MlxEngine
    from chatd.inference.tokens import Tokens

    async def write() -> str:
        engine = MlxEngine(folder, slots=1, reserved=0, prefix_cache_bytes=1, clock=SystemClock())
        try:
            await engine.start()
            segments = Tokens.load(folder).prompt((Piece(name="check", text="Reply with one word.\n\n"),))
            async for event in engine.generate(Generation(id="check", segments=segments, max_tokens=8)):
                if isinstance(event, Finished):
                    if event.reason not in {"stop", "length"}:
                        raise EngineError(event.error or event.reason)
                    return event.text
        finally:
            await engine.stop(0)
        return ""

    return asyncio.run(write())


def _redis(url: str, settings: Settings) -> Redis:
    """A client that sends every command once: the worker knows what to do about a reply that got lost, and a claim
    that is sent again by itself would leave the jobs of the first one with nobody."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


# --- the worker's process ---


def work(settings: Settings, places: Places, *, worker_id: str, pulse_fd: int, rehearsal: Rehearsal) -> int:
    """Run one worker until SIGTERM, or until standard input ends; returns the exit status."""
    no_core_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor says when to stop
    writer = logs.set_up(settings.log_level)
    try:
        asyncio.run(_work(settings, places, worker_id, pulse_fd, rehearsal))
    except (EngineError, ChatdError, OSError, ValueError) as error:
        print(f"chatd infer: {error or type(error).__name__}", file=sys.stderr, flush=True)
        return CANNOT_START
    except Exception as error:  # a bug; its traceback could show what somebody has written
        structlog.get_logger(__name__).critical("worker_failed", worker=worker_id, error=logs.error_name(error))
        return 1
    finally:
        writer.close()
    return 0


async def _work(settings: Settings, places: Places, worker_id: str, pulse_fd: int, rehearsal: Rehearsal) -> None:
    clock = SystemClock()
    redis = _redis(places.redis_url, settings)
    bell = connect(places.redis_url, timeout_s=_BELL_READ_S, max_connections=2)
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    workers: list[Worker] = []
    draining: list[asyncio.Task[None]] = []

    def drain(drain_s: float) -> None:
        if workers:
            draining.append(asyncio.create_task(workers[0].drain(drain_s)))
        elif running is not None:
            running.cancel()

    def orphaned() -> None:
        # The next supervisor loads the model again; two of them might not fit into the memory.
        loop.call_soon_threadsafe(drain, 0.0)
        time.sleep(_ORPHAN_S)
        os._exit(1)

    loop.add_signal_handler(signal.SIGTERM, drain, settings.drain_timeout_s)
    at_end_of_input(orphaned)
    telling = [asyncio.create_task(_pulses(workers, worker_id, pulse_fd))]
    try:
        sealer = places.live_keys().sealer
        job_queue = JobQueue(redis, sealer, limits_of(settings))
        telling.append(asyncio.create_task(_announce(job_queue, settings, clock, worker_id)))
        engine, tokens = await asyncio.to_thread(_build, settings, clock, rehearsal)
        await tasks.end([telling.pop()])
        workers.append(
            Worker(
                engine,
                job_queue,
                tokens,
                clock=clock,
                worker_id=worker_id,
                settings=settings,
                redis=bell,
                beginnings=Beginnings(redis, sealer),
            )
        )
        await workers[0].run()
    except asyncio.CancelledError:
        if workers:
            raise
    finally:
        await tasks.end([*telling, *draining])
        await redis.aclose()
        await bell.aclose()


async def _announce(job_queue: JobQueue, settings: Settings, clock: Clock, worker_id: str) -> None:
    """Let gateways know that a worker is being started: reading a tokenizer alone takes seconds."""
    while True:
        now_ms = epoch_ms(clock.now())
        state = WorkerState(worker_id=worker_id, engine=settings.engine, state="starting", at_ms=now_ms)
        with contextlib.suppress(QueueUnavailable):
            await job_queue.beat(state, {}, is_progressing=False, now_ms=now_ms)
        await asyncio.sleep(settings.job_beat_s)


async def _pulses(workers: list[Worker], worker_id: str, pulse_fd: int) -> None:
    os.set_blocking(pulse_fd, False)
    while True:
        pulse = workers[0].pulse() if workers else Pulse(worker_id=worker_id, state="starting")
        # A supervisor that does not read must not hold the answers up; one that is gone is seen by standard input.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(pulse_fd, msgspec.json.encode(pulse) + b"\n")
        await asyncio.sleep(_PULSE_S)


def at_end_of_input(act: Callable[[], object]) -> None:
    """Call ``act`` from a thread when standard input ends: whoever holds its other end is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        with contextlib.suppress(RuntimeError):
            act()

    threading.Thread(target=wait, name="parent", daemon=True).start()


# --- the supervisor ---


class Guard:
    """Decides from what was heard when a worker's process is to be killed; pure, times in ms of one monotonic clock."""

    def __init__(self, now_ms: int, *, stall_ms: int, canary_ms: int) -> None:
        self._heard_ms = now_ms
        self._stall_ms = stall_ms
        self._canary_ms = canary_ms
        self.pulse: Pulse | None = None

    def heard(self, pulse: Pulse, now_ms: int) -> None:
        self.pulse = pulse
        self._heard_ms = now_ms

    def verdict(self, now_ms: int) -> str:
        """Why to kill it now; "" for not at all."""
        pulse, silent_ms = self.pulse, now_ms - self._heard_ms
        is_loaded = pulse is not None and pulse.canary_age_ms is not None
        if silent_ms > (SILENT_MS if is_loaded else _LOADING_SILENT_MS):
            return f"nothing heard for {silent_ms / 1000:.0f} s"
        if pulse is None or pulse.canary_age_ms is None:
            return ""
        if pulse.active and pulse.age_ms > self._stall_ms:
            return f"no step for {pulse.age_ms / 1000:.0f} s with {pulse.active} texts running"
        if pulse.canary_age_ms > self._canary_ms:
            return f"no token for {pulse.canary_age_ms / 1000:.0f} s"
        return ""


class _Child:
    """One worker's process and what it says."""

    def __init__(self, command: list[str], environment: Mapping[str, str], worker_id: str, guard: Guard) -> None:
        self.worker_id = worker_id
        self.guard = guard
        self.started_s = time.monotonic()
        self.is_ready = False
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reading, writing = os.pipe()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - this very program
                [*command, "--worker-id", worker_id, "--pulse-fd", str(writing)],
                stdin=subprocess.PIPE,
                # Libraries print as they like; the supervisor's own output stays its own.
                stdout=sys.stderr.fileno(),
                pass_fds=(writing,),
                env=environment,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        threading.Thread(target=self._read, args=(os.fdopen(reading, "rb"),), daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)

    def listen(self, now_ms: int) -> None:
        """Take in what it has said since."""
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return
            with contextlib.suppress(msgspec.MsgspecError):
                self.guard.heard(msgspec.json.decode(line, type=Pulse), now_ms)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()


class InferSupervisor:
    """Keeps one worker's process going until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, places: Places, rehearsal: Rehearsal, *, ends_with_input: bool) -> None:
        """``ends_with_input``: stop, as by SIGTERM, when standard input ends."""
        self._settings = settings
        self._places = places
        self._command = [
            *(sys.executable, "-m", "chatd", "infer", "--supervised"),
            *("--step-ms", str(rehearsal.step_ms)),
            *(word for fault in rehearsal.faults for word in ("--fault", fault)),
        ]
        # By the environment: an address may hold a password, and arguments can be read by everybody on the machine.
        self._environment = {**os.environ, **places.environment(), "CHATD_REDIS_URL": places.redis_url}
        self._ends_with_input = ends_with_input
        self._stop = threading.Event()
        self._signals = 0
        self._dead: deque[str] = deque(maxlen=_MOST_DEAD)
        self._failures = 0
        self._was_ready = False
        self._name = settings.model or settings.engine

    def run(self) -> int:
        """Returns the exit status: 0 after a stop, 1 when the engine cannot be started at all."""
        no_core_dumps()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self._ends_with_input:
            at_end_of_input(self._stop.set)
        while not self._stop.is_set():
            status = self._run_one()
            if self._stop.is_set():
                break
            # A vLLM server may come up later; a model that does not load once will not load the next time.
            if status == CANNOT_START and not self._was_ready and self._settings.engine != "vllm":
                return 1
            pause_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
            self._failures += 1
            _say(f"the worker has ended ({_cause(status)}), starting it again in {pause_s:.0f} s")
            self._wait(pause_s)
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._stop.set()

    def _run_one(self) -> int:
        """One worker's process from its start to its end; its jobs are given back."""
        settings = self._settings
        guard = Guard(
            _ms(),
            stall_ms=round(settings.engine_stall_s * 1000),
            canary_ms=round((settings.model_down_s + settings.engine_stall_s) * 1000),
        )
        host = "".join(letter for letter in platform.node() if letter.isalnum() or letter in "-.")[:40]
        child = _Child(
            self._command, self._environment, f"{host or 'worker'}-{os.getpid()}-{secrets.token_hex(4)}", guard
        )
        _say(f"loading {self._name} ...")
        told_s = child.started_s
        try:
            while (status := child.process.poll()) is None and not self._stop.is_set():
                child.listen(_ms())
                if not child.is_ready:
                    told_s = self._tell_loading(child, told_s)
                if why := guard.verdict(_ms()):
                    _say(f"{why}: killing the worker")
                    child.process.kill()
                    child.process.wait()
                    continue
                self._give_back()
                self._stop.wait(_TICK_S)
            if status is None:
                status = self._end(child)
        finally:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            child.close()
            if child.process.returncode != 0:
                self._dead.append(child.worker_id)
                self._give_back()
        return status

    def _tell_loading(self, child: _Child, told_s: float) -> float:
        pulse, now_s = child.guard.pulse, time.monotonic()
        took_s = now_s - child.started_s
        if pulse is not None and pulse.state == "ready":
            # It loads and writes: only starts that fail make the pauses grow.
            child.is_ready = self._was_ready = True
            self._failures = 0
            reserved = self._settings.engine_reserved_slots
            _say(f"ready: {pulse.model}, {pulse.slots} slots, {reserved} of them for stat, after {took_s:.1f} s")
            print(f"ready {self._settings.engine} {pulse.worker_id} pid {child.process.pid}", flush=True)
        elif now_s - told_s >= _TELL_AFTER_S:
            is_loaded = pulse is not None and pulse.canary_age_ms is not None
            what = "making shared beginnings ready" if is_loaded else f"loading {self._name}"
            _say(f"{what} ... {took_s:.0f} s")
            return now_s
        return told_s

    def _end(self, child: _Child) -> int:
        """Let the worker drain; a second signal, or too long a drain, kills it."""
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGTERM)
        signals, give_up = self._signals, time.monotonic() + self._settings.drain_timeout_s + _STOP_MARGIN_S
        while time.monotonic() < give_up and self._signals == signals:
            try:
                return child.process.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                child.listen(_ms())
        child.process.kill()
        return child.process.wait()

    def _give_back(self) -> None:
        """Let the jobs of dead workers be begun again at once; what Redis cannot take now is told it the next time."""
        while self._dead:
            try:
                count = asyncio.run(self._release(self._dead[0]))
            except (QueueUnavailable, OSError):
                return
            self._dead.popleft()
            if count:
                _say(f"{count} answers go to the next worker")

    async def _release(self, worker_id: str) -> int:
        redis = _redis(self._places.redis_url, self._settings)
        try:
            job_queue = JobQueue(redis, Sealer(self._places.key_ring()), limits_of(self._settings))
            return await job_queue.release(worker_id, epoch_ms(SystemClock().now()))
        finally:
            await redis.aclose()

    def _wait(self, pause_s: float) -> None:
        give_up = time.monotonic() + pause_s
        while not self._stop.is_set() and time.monotonic() < give_up:
            self._give_back()
            self._stop.wait(_TICK_S)


def _ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _say(text: str) -> None:
    print(f"chatd infer: {text}", file=sys.stderr, flush=True)
