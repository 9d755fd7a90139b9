"""The short form of ``make faults``: each step once."""

from __future__ import annotations

import pytest

from chatd.faults import STEPS
from tests.faults import campaign

pytestmark = pytest.mark.journeys


@pytest.mark.faults
def test_gateway_killed_at_each_step_answers_once() -> None:
    """A gateway killed with SIGKILL after any step leaves exactly one answer and no gap behind."""
    held = campaign.run(1000, len(STEPS) + 1, show=False)
    assert set(held) == {*STEPS, campaign.ANYWHERE}
