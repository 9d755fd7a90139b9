"""The mlx engine keeps the promises of the seam, with mlx-lm itself and a tiny random model on the CPU."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("tests.inference.conformance")

from chatd.clock import SystemClock  # noqa: E402
from chatd.inference.engine import Generation  # noqa: E402
from chatd.inference.mlx import MlxEngine  # noqa: E402
from chatd.inference.sections import grammar  # noqa: E402
from chatd.inference.tiny import make  # noqa: E402
from chatd.inference.tokens import Tokens  # noqa: E402
from tests.inference.conformance import Conformance, Rig  # noqa: E402

ACTIONS = ("order_ecg", "notify_icu", "order_troponin")
#: A random model may end a free text at any token; this one cannot end before it was told to go.
ENDLESS = 'start: /[a-zA-Z ]{6000}/ "\\n"'


class _Rig(Rig, kw_only=True):
    """Texts that are to be held go on for certain."""

    def held(self, **fields: Any) -> Generation:
        return super().held(**{"grammar": ENDLESS, **fields})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder: Path = tmp_path_factory.mktemp("mlx")
    make(folder, "1m")

    async def start() -> MlxEngine:
        engine = MlxEngine(folder, slots=5, reserved=1, prefix_cache_bytes=1 << 28, clock=SystemClock())
        await engine.start()
        return engine

    engine = await start()
    yield _Rig(
        engine=engine,
        make=start,
        tokens=Tokens.load(folder),
        actions=ACTIONS,
        grammar=grammar(ACTIONS),
        # A step of the tiny model takes as long as one of a large one on a GPU: fewer replies than by default here,
        # all of them in the long form.
        replies=6,
        reply_tokens=240,
        long_words=200,
    )
    await engine.stop(0)


class TestMlx(Conformance):
    """The whole suite on MLX."""
