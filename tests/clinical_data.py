"""Where the clinical test data lies, beside the checkout; a clone without it skips those tests and says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLINICAL = Path(os.environ.get("CHATD_TEST_CLINICAL_DATA", ROOT.parent / "shared" / "data" / "clinical"))


def clinical_path(*parts: str) -> Path:
    """The path of a file or folder of the clinical test data; skips without it, in CI fails."""
    path = CLINICAL.joinpath(*parts)
    if not path.exists():
        reason = f"clinical test data not beside this checkout: {'/'.join(parts)} (set CHATD_TEST_CLINICAL_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
