"""Whole stories over WebSockets with a real vLLM server behind gateway, queue and worker: `make test-vllm`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.stories import WAIT_S, Stories, doctor, running, stop_one
from tests.server import Hospital
from tests.vllm.server import running_requests

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def place(url: str, model_folder: Path) -> Iterator[Hospital]:
    """A ``chatd up`` whose worker writes with the server on its Unix socket."""
    with running("--engine", "vllm", "--url", url, "--model", str(model_folder)) as hospital:
        yield hospital


class TestVllmStories(Stories):
    """All stories, each in its whole size."""

    async def test_stopped_question_leaves_the_server_with_nothing_to_do(self, place: Hospital, url: str) -> None:
        """A phone's stop travels through gateway, queue and worker to vLLM: its own count of texts goes to zero."""
        client = await doctor(place, 310)
        await stop_one(place, client)
        async with asyncio.timeout(WAIT_S):
            while await running_requests(url) > 0:  # noqa: ASYNC110 - a number on the server's page
                await asyncio.sleep(0.02)
        await client.close()
