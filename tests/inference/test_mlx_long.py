"""The suite of all engines on MLX once more, with 50 replies that may come to their end and long prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("tests.inference.conformance")

from tests.inference.conformance import Conformance, Rig  # noqa: E402
from tests.inference.test_mlx_conformance import open_rig  # noqa: E402

pytestmark = pytest.mark.inference


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    rig = await open_rig(tmp_path_factory.mktemp("mlx_long"), slots=13, replies=50, reply_tokens=1200)
    yield rig
    await rig.engine.stop(0)


class TestMlxLong(Conformance):
    """The whole suite with the sizes that it has by default, and more room for each reply."""
