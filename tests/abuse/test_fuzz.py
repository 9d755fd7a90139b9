"""The fuzzer's short form: nothing unhandled in the codec and the session, no 1011 and no 5xx from a gateway."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.abuse.fuzz import FUZZ_ENV, in_process, over_sockets
from tests.abuse.gateway import faults_in, gateway_pid
from tests.abuse.mutations import GOLDEN, mutants
from tests.server import hospital


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.abuse) for seed in range(2, 6))])
def test_every_changed_frame_is_judged(seed: int) -> None:
    """4,000 frames of a seed end in a frame, a refusal or the verdict after five strikes, and reach all frame types."""
    found = in_process(seed, 4_000)
    assert sum(found.values()) == 4_000
    assert found["bad_request"] > 1_000
    assert {"4507", "too_large"} <= set(found)
    types = {str(frame["type"]) for frame in GOLDEN} - {"hello", "ack"}
    assert types <= set(found)


def test_a_seed_gives_the_same_frames() -> None:
    """What a campaign has found can be made again."""
    for msgpack in (False, True):
        first, again = (list(itertools.islice(mutants(7, msgpack=msgpack), 200)) for _ in range(2))
        assert first == again
        assert len(set(first)) > 150


@pytest.mark.abuse
def test_a_gateway_takes_changed_frames_over_sockets() -> None:
    """2,000 frames over four phones and 50 bodies: 0 closes with 1011, 0 statuses from 500, a clean log."""
    with hospital(env=FUZZ_ENV) as place:
        pid = gateway_pid(place)
        seen = asyncio.run(over_sockets(place, 9, 2_000))
        assert gateway_pid(place) == pid
        assert faults_in(place.up.log()) == []
    assert seen.sent + seen.kept_back == sum(seen.judged.values()) == 2_000
    assert seen.kept_back < 400
    assert seen.frames["error"] > 500
    assert seen.is_clean, (seen.closes, seen.statuses)
