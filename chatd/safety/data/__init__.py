"""The clinical tables of ``chatd.safety`` as JSON, each entry with its source."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def load(name: str) -> dict[str, Any]:
    """The table ``<name>.json`` of this package, decoded; raises FileNotFoundError for an unknown name."""
    decoded: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return decoded
