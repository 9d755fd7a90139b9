"""One server for all tests of this folder: it takes most of a minute to come up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatd.inference import tiny
from tests.vllm.server import serving


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random Gemma 3."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.make(folder, "1m")
    return folder


@pytest.fixture(scope="session")
def url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running vLLM: a Unix socket, as the unit in deploy/vllm has it."""
    with serving(model_folder, "server", uds=tmp_path_factory.mktemp("socket") / "vllm.sock") as address:
        yield address
