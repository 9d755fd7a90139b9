"""Mixed messages of many users at once: each gets their own words and their own patient, and nobody another's."""

from __future__ import annotations

import asyncio

import pytest

from tests.abuse.gateway import ENV, faults_in
from tests.abuse.mixing import CANARY, User, admit, canary_of, mix
from tests.server import hospital


def test_a_canary_is_found_wherever_it_stands() -> None:
    """Each user's word is another, and is found in JSON, in capitals and beside letters."""
    words = {canary_of(number) for number in range(500)}
    assert len(words) == 500
    user = User(3)
    user.take(b'{"type":"pong","t":"' + user.canary.encode() + b'.7"}')
    assert (user.own, user.crossings) == (1, [])
    other = canary_of(4)
    user.take(b'{"type":"ai_response","text":"Ana ' + other.upper().encode() + b'"}')
    assert user.crossings == [f"dr.mix3 got {other.upper()} in ai_response"]
    assert all(CANARY.fullmatch(word) for word in words)


@pytest.mark.abuse
@pytest.mark.parametrize("engine", ["none", "scripted"])
def test_nobody_gets_what_is_anothers(engine: str) -> None:
    """Mixed messages of 20 users in three departments, each about a patient of their own: 0 crossings, all answered."""
    users, messages = [User(number) for number in range(20)], 2_000 if engine == "none" else 400
    with hospital("--engine", engine, env=ENV) as place:
        admit(place, users)
        asyncio.run(mix(place, users, messages, seed=1))
        assert faults_in(place.up.log()) == []
    assert [line for user in users for line in user.crossings] == []
    # Every user's patient was named to them, and their own ids came back.
    assert all(user.own > user.got["ai_response"] > 0 for user in users)
