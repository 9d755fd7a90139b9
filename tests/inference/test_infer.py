"""``chatd infer``: real processes on a real Redis, killed and frozen; and the rules of when to kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis

from chatd.cli import main
from chatd.clock import epoch_ms
from chatd.infer import SILENT_MS, Guard, InferError, check
from chatd.inference.jobs import Job, Piece, Result
from chatd.inference.limits import limits_of
from chatd.inference.queue import JobQueue
from chatd.inference.sections import parse
from chatd.inference.worker import Pulse
from chatd.places import Places
from chatd.settings import Settings
from context.seal import Sealer
from tests.redis_server import RedisServer
from tests.server import Process

pytestmark = pytest.mark.journeys

PATIENCE_S = 60.0
ACTIONS = ("order_ecg", "notify_icu")


def now_ms() -> int:
    return epoch_ms(datetime.now(UTC))


class Bench:
    """A data directory, a Redis, ``chatd infer`` processes on them, and a gateway's side of the queue.

    The lease is far longer than the test: what is begun again was given back by the supervisor.
    """

    def __init__(self, data: Path, redis: Redis, url: str) -> None:
        self.settings = Settings(data_dir=str(data), redis_url=url, job_lease_s=300.0, job_attempts=50)
        self.queue = JobQueue(redis, Sealer(Places(self.settings).key_ring()), limits_of(self.settings))
        self._processes: list[Process] = []

    def infer(self, *arguments: str) -> Process:
        settings = self.settings
        env = {
            "CHATD_DATA_DIR": settings.data_dir,
            "CHATD_REDIS_URL": settings.redis_url,
            "CHATD_JOB_LEASE_S": str(settings.job_lease_s),
            "CHATD_JOB_ATTEMPTS": str(settings.job_attempts),
        }
        process = Process(["infer", "--engine", "scripted", "--slots", "6", *arguments], env)
        self._processes.append(process)
        return process

    async def child(self, process: Process) -> int:
        """The process id of the worker that has become ready."""
        assert process.process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(process.process.stdout.readline), PATIENCE_S)
        assert line.startswith("ready scripted "), process.log()
        return int(line.split()[-1])

    async def ask(self, *job_ids: str) -> None:
        for job_id in job_ids:
            pieces = (Piece(name="hospital", text="Rules.\n\n"), Piece(name="question", text=f"{job_id}?\n\n"))
            job = Job(job_id=job_id, pieces=pieces, actions=ACTIONS, max_tokens=400, salt="hospital")
            doctor = f"dr.{job_id}"
            placed = await self.queue.enqueue(job, doctor=doctor, lane="routine", follower="g", now_ms=now_ms())
            assert placed.outcome == "queued"

    async def events(self, job_id: str) -> list[Result]:
        return (await self.queue.read({job_id: "0"}))[job_id] or []

    async def writing(self, job_id: str, attempt: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not any(e.kind == "text" and e.attempt >= attempt for e in await self.events(job_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def answer(self, job_id: str) -> list[Result]:
        """All events, ended exactly once, with a whole text in the last attempt."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(event.kind == "ended" for event in await self.events(job_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        events = await self.events(job_id)
        assert [event.kind for event in events].count("ended") == 1
        last = events[-1]
        assert last.kind == "ended"
        assert last.outcome is not None
        assert last.outcome.reason == "stop"
        text = "".join(event.text for event in events if event.attempt == last.attempt)
        assert parse(text, ACTIONS).is_complete
        return events

    def close(self) -> None:
        for process in self._processes:
            if process.process.poll() is None:
                process.stop()
            else:
                process.close()


@pytest.fixture
async def bench(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, redis, redis_server.url)
    yield bench
    await asyncio.to_thread(bench.close)


async def test_killed_worker_is_started_again_and_its_answers_end_once(bench: Bench) -> None:
    """SIGKILL in mid-stream: jobs are given back at once, the next worker writes each of them whole; SIGTERM drains."""
    process = bench.infer("--step-ms", "8")
    pid = await bench.child(process)
    await bench.ask("a", "b", "c")
    await bench.writing("a")
    os.kill(pid, signal.SIGKILL)
    again = await bench.child(process)
    assert again != pid
    for job_id in ("a", "b", "c"):
        events = await bench.answer(job_id)
        assert events[-1].attempt <= 2
    assert (await bench.events("a"))[-1].attempt == 2
    await bench.ask("last")
    await bench.writing("last")
    process.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.process.wait, PATIENCE_S) == 0
    await bench.answer("last")
    assert await bench.queue.workers(now_ms()) == []


@pytest.mark.heavy
@pytest.mark.faults
async def test_frozen_and_hung_and_killed_workers_lose_no_answer(bench: Bench) -> None:
    """SIGSTOP and SIGKILL in turn in mid-stream: each answer ends exactly once, whole; times are printed."""
    process = bench.infer("--step-ms", "8")
    times: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
    for n in range(6):
        pid = await bench.child(process)
        await bench.ask(f"a{n}", f"b{n}")
        await bench.writing(f"a{n}")
        number = signal.SIGSTOP if n % 3 == 2 else signal.SIGKILL
        begun = time.monotonic()
        os.kill(pid, number)
        await bench.writing(f"a{n}", attempt=2)
        times[number.name].append(time.monotonic() - begun)
        for job_id in (f"a{n}", f"b{n}"):
            await bench.answer(job_id)
    for name, seconds in times.items():
        print(f"{name}: s until the answer is written again: {', '.join(f'{s:.1f}' for s in seconds)}")


async def test_supervisor_that_is_killed_takes_its_worker_along(bench: Bench) -> None:
    """The worker sees its standard input end, gives its jobs back and goes."""
    process = bench.infer("--step-ms", "8")
    pid = await bench.child(process)
    await bench.ask("a")
    await bench.writing("a")
    process.process.kill()
    process.process.wait()
    async with asyncio.timeout(PATIENCE_S):
        while (await bench.events("a"))[-1].kind != "restart":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        while _is_alive(pid):  # noqa: ASYNC110 - a process tells nobody of its end
            await asyncio.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped yet is dead too.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


# --- when to kill: pure ---


def guard() -> Guard:
    return Guard(0, stall_ms=20_000, canary_ms=32_000)


def pulse(**fields: int | None) -> Pulse:
    return Pulse(worker_id="w", state="ready", **fields)  # type: ignore[arg-type]


def test_guard_waits_long_for_loading_and_briefly_for_a_loaded_worker() -> None:
    """A worker that loads may be silent; a loaded one that says nothing stands still."""
    loading = guard()
    assert loading.verdict(60_000) == ""
    assert loading.verdict(200_000)
    loaded = guard()
    loaded.heard(pulse(canary_age_ms=0), 1_000)
    assert loaded.verdict(1_000 + SILENT_MS) == ""
    assert "nothing heard" in loaded.verdict(1_001 + SILENT_MS)


def test_guard_kills_on_no_step_with_work_and_on_no_token_without() -> None:
    """An idle engine may be without a step for ever, and not without a canary's token."""
    one = guard()
    one.heard(pulse(active=0, age_ms=90_000, canary_age_ms=4_000), 0)
    assert one.verdict(0) == ""
    one.heard(pulse(active=3, age_ms=20_000, canary_age_ms=20_000), 0)
    assert one.verdict(0) == ""
    one.heard(pulse(active=3, age_ms=20_001, canary_age_ms=20_000), 0)
    assert "no step" in one.verdict(0)
    one.heard(pulse(active=0, age_ms=0, canary_age_ms=32_001), 0)
    assert "no token" in one.verdict(0)


# --- what people are told ---


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"engine": "none"}, "give --engine"),
        ({"engine": "mlx"}, "needs --model"),
        ({"engine": "mlx", "model": "/nowhere/at/all"}, "no folder /nowhere/at/all"),
        ({"engine": "vllm"}, "needs --model"),
    ],
)
def test_call_that_cannot_work_is_told_in_one_line(fields: dict[str, str], told: str) -> None:
    """Before anything is started, with what to do."""
    with pytest.raises(InferError, match=told) as raised:
        check(Settings(**fields))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_folder_that_is_no_model_is_told_with_the_missing_file(tmp_path: Path) -> None:
    """And vLLM without an address says which option is missing."""
    with pytest.raises(InferError, match=r"config\.json is missing"):
        check(Settings(engine="mlx", model=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InferError, match="--url"):
        check(Settings(engine="vllm", model=str(tmp_path)))


def test_engine_whose_libraries_are_missing_says_which_command_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a gateway's machine, which needs none of them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InferError, match="run scripts/setup mlx"):
        check(Settings(engine="mlx", model=str(tmp_path)))


def test_infer_without_a_running_chatd_says_what_to_start(tmp_path: Path) -> None:
    """One line on standard error, exit status 1."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHATD_")}
    command = [sys.executable, "-m", "chatd", "infer", "--engine", "scripted", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert done.stderr.startswith("chatd: no chatd up is running")


# --- chatd model ---


def test_model_commands_make_check_and_pin_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made, looked at and pinned; a folder with something in it is left alone; a changed file is an error."""
    folder = tmp_path / "tiny"
    assert main(["model", "tiny", str(folder)]) == 0
    assert main(["model", "check", "--pin", "--no-run", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] == "ok" for line in lines[1:])
    assert main(["model", "tiny", str(folder)]) == 1
    assert "not empty" in capsys.readouterr().err
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106], "changed": true}')
    assert main(["model", "check", "--no-run", str(folder)]) == 1
    assert "generation_config.json" in capsys.readouterr().out
    assert main(["model", "check", str(tmp_path / "absent")]) == 1
    assert main(["model", "convert", str(folder), str(folder)]) == 1
    assert "exists already" in capsys.readouterr().err
