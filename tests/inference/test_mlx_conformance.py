"""The mlx engine keeps the promises of the seam, with mlx-lm itself and a tiny random model on the CPU."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chatd.clock import SystemClock
from chatd.inference.engine import Generation
from chatd.inference.mlx import MlxEngine
from chatd.inference.sections import grammar
from chatd.inference.tiny import make
from chatd.inference.tokens import Tokens
from tests.inference.conformance import Conformance, Rig

pytestmark = pytest.mark.inference

ACTIONS = ("order_ecg", "notify_icu", "order_troponin")
#: A random model may end a free text at any token; this one cannot end before it was told to go.
ENDLESS = 'start: /[a-zA-Z ]{6000}/ "\\n"'


class _Rig(Rig, kw_only=True):
    """Texts that are to be held go on for certain."""

    def held(self, **fields: Any) -> Generation:
        return super().held(**{"grammar": ENDLESS, **fields})


async def open_rig(folder: Path, *, slots: int, **sizes: Any) -> Rig:
    """A rig of ``slots`` with a tiny model in ``folder``; its engine is to be stopped."""
    make(folder, "1m")

    async def start() -> MlxEngine:
        engine = MlxEngine(folder, slots=slots, reserved=1, prefix_cache_bytes=1 << 28, clock=SystemClock())
        await engine.start()
        return engine

    return _Rig(
        engine=await start(),
        make=start,
        tokens=Tokens.load(folder),
        actions=ACTIONS,
        grammar=grammar(ACTIONS),
        **sizes,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    # Fewer and shorter texts than by default: on the CPU it takes as long for a token of the tiny model as a GPU takes
    # for one of a large one. The long form has a file of its own.
    rig = await open_rig(tmp_path_factory.mktemp("mlx"), slots=5, replies=3, reply_tokens=120, long_words=120)
    yield rig
    await rig.engine.stop(0)


class TestMlx(Conformance):
    """The whole suite on MLX."""
