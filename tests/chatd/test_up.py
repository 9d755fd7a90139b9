"""The supervisor outlives a Redis that does not start at the first attempt, and a worker that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from chatd.places import Places
from chatd.private_redis import PrivateRedis, RedisNotStarted
from chatd.settings import Settings
from chatd.up import Supervisor
from tests.http_call import call
from tests.server import Process, hospital

PATIENCE_S = 60.0


class Reluctant(PrivateRedis):
    """A Redis that cannot be started a given number of times."""

    def __init__(self, data: Path, failures: int) -> None:
        super().__init__(data)
        self.failures = failures

    def start(self) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise RedisNotStarted("no memory")
        super().start()


def test_redis_that_fails_to_start_again_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One failure is told and survived, and the next attempt starts it."""
    settings = Settings(data_dir=str(tmp_path))
    supervisor = Supervisor(settings, Places(settings), own_redis=True)
    redis = Reluctant(tmp_path, failures=1)
    try:
        supervisor._start_redis_again(redis)
        assert not redis.is_answering()
        assert "no memory" in capsys.readouterr().err
        supervisor._start_redis_again(redis)
        assert redis.is_answering()
    finally:
        redis.stop()
    assert not redis.is_running()


def test_engine_without_a_model_is_told_before_anything_is_started(tmp_path: Path) -> None:
    """One line and exit status 1; no gateway, no Redis, nothing in the data directory."""
    process = Process(
        ["up", "--data-dir", str(tmp_path / "data"), "--port", "0", "--engine", "mlx", "--model", "/none"]
    )
    assert process.process.wait(PATIENCE_S) == 1
    assert process.log().startswith("chatd: there is no folder /none")
    assert not (tmp_path / "data").exists()
    process.close()


def _children(pid: int, word: str) -> list[int]:
    """Process ids below ``pid`` whose command holds ``word``."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()]
    return [int(own) for own, parent, command in rows if int(parent) == pid and word in command]


def _wait_for(process: Process, text: str, times: int) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while process.log().count(text) < times:
        assert time.monotonic() < give_up, process.log()[-2000:]
        time.sleep(0.05)


@pytest.mark.journeys
def test_worker_that_is_killed_with_its_supervisor_comes_back_and_the_gateway_stays() -> None:
    """``chatd up --engine`` starts ``chatd infer`` again; the gateway answers all the while."""
    with hospital("--engine", "scripted") as place:
        _wait_for(place.up, "chatd infer: ready:", 1)
        (gateway,) = _children(place.up.process.pid, " serve ")
        (infer,) = _children(place.up.process.pid, " infer ")
        os.kill(infer, signal.SIGKILL)
        _wait_for(place.up, "chatd infer has ended", 1)
        assert call(place.url, "/health/live").status == 200
        _wait_for(place.up, "chatd infer: ready:", 2)
        assert _children(place.up.process.pid, " serve ") == [gateway]
        assert len(_children(place.up.process.pid, " infer ")) == 1
