"""The engine behind vLLM keeps the promises of the seam: the same suite as for every engine, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from chatd.inference.sections import grammar
from chatd.inference.tokens import Tokens
from chatd.inference.vllm import VllmEngine
from tests.inference.conformance import Conformance, Rig
from tests.vllm.server import MODEL

pytestmark = pytest.mark.vllm

ACTIONS = ("order_ecg", "notify_icu", "order_troponin", "repeat_lactate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(url: str, model_folder: Path) -> AsyncIterator[Rig]:
    tokens = Tokens.load(model_folder)

    async def make() -> VllmEngine:
        engine = VllmEngine(url, tokens, MODEL, slots=6, reserved=1)
        await engine.start()
        return engine

    engine = await make()
    # Fewer and shorter replies than of the other engines: the structure of 20 is looked at beside this suite, and
    # vLLM on the CPU takes its time.
    yield Rig(
        engine=engine,
        make=make,
        tokens=tokens,
        actions=ACTIONS,
        grammar=grammar(ACTIONS),
        replies=15,
        reply_tokens=250,
        # The server writes on while its frames wait for a core: 600 tokens were once all there before the first of
        # them was seen here.
        hold_tokens=4000,
    )
    await engine.stop(0)


class TestVllm(Conformance):
    """The whole suite on a real server."""
