"""The scripted engine keeps the promises of the seam."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from chatd.inference.scripted import ScriptedEngine, ScriptedTokens
from chatd.inference.sections import grammar
from tests.inference.conformance import Conformance, Rig

ACTIONS = ("order_ecg", "notify_icu", "order_troponin")


async def _make() -> ScriptedEngine:
    engine = ScriptedEngine(slots=4, reserved=1, step_ms=0.5)
    await engine.start()
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    engine = await _make()
    yield Rig(engine=engine, make=_make, tokens=ScriptedTokens(), actions=ACTIONS, grammar=grammar(ACTIONS))
    await engine.stop(0)


class TestScripted(Conformance):
    """The whole suite on the scripted engine."""
