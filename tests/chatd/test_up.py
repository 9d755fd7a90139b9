"""The supervisor outlives a Redis that does not start at the first attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatd.places import Places
from chatd.private_redis import PrivateRedis, RedisNotStarted
from chatd.settings import Settings
from chatd.up import Supervisor


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
