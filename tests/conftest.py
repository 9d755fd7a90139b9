"""What all tests share: a real Redis, emptied before each test, and the repository's root on the import path."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

ROOT = Path(__file__).resolve().parent.parent
# The tests import their helpers as ``tests.<name>``; the installed package holds the product alone.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Suites that several engines inherit: their assertions show values like those of any test.
pytest.register_assert_rewrite("tests.inference.conformance", "tests.inference.stories")

from tests.redis_server import RedisServer  # noqa: E402

# A shared machine may stall for a second at any time; how long an example takes is no property of the code.
settings.register_profile("chatd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatd")


#: Files with a few long tests, the longest first: begun last, one of them would keep one core busy and the others idle.
LONG = (
    "test_replies_synthea",
    "test_pools",
    "test_vllm_adapter",
    "test_ledger",
    "test_sections",
    "test_queue_ends",
    "test_queue_order",
    "test_injection",
    "test_worker",
    "test_ledger_shape",
    "test_fhir_data",
    "test_feeds",
    "test_records",
    "test_fhir_mixing",
    "test_serve",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, the others as they were."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """What a command sets up when a test calls it in this process is not the next test's log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    uvicorn, access = logging.getLogger("uvicorn.error"), logging.getLogger("uvicorn.access")
    uvicorn_level, is_access_disabled = uvicorn.level, access.disabled
    yield
    if structlog.is_configured():
        root.handlers[:] = handlers
        root.setLevel(level)
        uvicorn.setLevel(uvicorn_level)
        access.disabled = is_access_disabled
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the whole run; tests that kill or freeze it take ``own_redis_server`` instead."""
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """An asyncio client on an empty Redis; it answers in bytes."""
    redis_server.flush()
    client = redis_server.client()
    yield client
    await client.aclose()


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A running Redis of this test's own, to kill, freeze, restart and empty."""
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
async def own_redis(own_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """An asyncio client on ``own_redis_server``; it answers in bytes."""
    client = own_redis_server.client()
    yield client
    await client.aclose()
