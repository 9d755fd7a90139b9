"""Whole stories over WebSockets with the real mlx-lm engine on a tiny random model: `make test-inference`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatd.inference import tiny
from tests.inference.stories import Stories, running
from tests.server import Hospital

pytestmark = pytest.mark.inference


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A ``chatd up`` with the tiny model behind it, ready to write."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.make(folder, "1m")
    with running("--engine", "mlx", "--model", str(folder)) as hospital:
        yield hospital


class TestMlxStories(Stories):
    """All stories, each in its whole size."""
