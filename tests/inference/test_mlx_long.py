"""Fifty replies of the random model on MLX, more and longer ones than `make test` has time for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.inference.conformance import Conformance, Rig
from tests.inference.test_mlx_conformance import open_rig

pytestmark = pytest.mark.inference


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    rig = await open_rig(tmp_path_factory.mktemp("mlx_long"), slots=21, replies=50, reply_tokens=200)
    yield rig
    await rig.engine.stop(0)


@pytest.mark.asyncio(loop_scope="module")
class TestMlxLong:
    """The one test of the suite whose size the short run of `make test` leaves out."""

    test_fifty_replies_are_valid_sections_with_catalogue_ids_only = (
        Conformance.test_replies_under_the_grammar_are_valid_sections_with_catalogue_ids_only
    )
