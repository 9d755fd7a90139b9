"""Every row of the tables of bad inputs against one real gateway: the outcome it names, and the gateway unharmed."""

from __future__ import annotations

import asyncio

import pytest

from tests.abuse.gateway import ENV, faults_in, gateway_pid
from tests.abuse.runner import CASES, CODEC_CASES, group_of, run_all
from tests.server import hospital

#: What the gateway's process may have gained at the end.
MOST_BYTES = 20_000_000
GROUPS = {"handshake": 50, "token": 60, "schema": 50, "content": 30, "authz": 25, "frames": 50, "http": 50}


def test_the_table_is_long_and_whole() -> None:
    """Each group of inputs has many rows, each row a name of its own and something that it must end in."""
    assert len({case["id"] for case in CASES}) == len(CASES)
    for group, least in GROUPS.items():
        assert sum(group_of(case) == group for case in CASES) >= least, group
    assert {group_of(case) for case in CASES} == set(GROUPS)
    assert all(case["expect"] and case["input"] for case in CASES)
    assert len(CODEC_CASES) >= 200


@pytest.mark.abuse
def test_every_bad_input_ends_as_its_row_says() -> None:
    """All rows over sockets; then the same process, a clean log, a phone that stayed, and little memory gained."""
    with hospital(env=ENV) as place:
        report, run, growth_bytes = asyncio.run(run_all(place))
        assert gateway_pid(place) == run.pid
        assert faults_in(place.up.log()) == []
    print(f"{sum(report.counted.values())} cases, memory +{growth_bytes / 1e6:.1f} MB")
    assert report.failed == []
    assert sum(report.counted.values()) == len(CASES) + len(CODEC_CASES)
    assert growth_bytes < MOST_BYTES
