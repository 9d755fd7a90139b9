"""One running demo hospital for all journeys, and ways to talk to it: each phone has a session of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.chat_client import ChatClient
from tests.server import Hospital, hospital

#: The journeys ask more than ten questions a minute; the limit has a journey of its own.
ENV = {"CHATD_MESSAGES_PER_MINUTE": "100000", "CHATD_SWEEP_INTERVAL_S": "0.2", "CHATD_DRAIN_SPREAD_S": "0.2"}


@pytest.fixture(scope="session")
def place() -> Iterator[Hospital]:
    """A running ``chatd up`` with the demo hospital."""
    with hospital(env=ENV) as running:
        yield running


@pytest.fixture(scope="session")
def tokens(place: Hospital) -> Callable[..., str]:
    """Tokens by user and department, each made once."""
    made: dict[tuple[str, str], str] = {}

    def token(user: str = "dr.santos.cardio", department: str = "cardiology") -> str:
        if (user, department) not in made:
            made[user, department] = place.token(user, department, ttl="40000")
        return made[user, department]

    return token


@pytest.fixture
async def phone(place: Hospital, tokens: Callable[..., str]) -> AsyncIterator[Callable[..., ChatClient]]:
    """Makes phones of any user, each a user of its own unless named; closes them at the end."""
    phones: list[ChatClient] = []

    def make(user: str | None = None, department: str = "cardiology", **options: str) -> ChatClient:
        user = user or "dr.santos.cardio"
        made = ChatClient(
            place.url,
            department=department,
            user_id=user,
            token=tokens(user, department),
            session_id=options.get("session_id") or f"sess_{secrets.token_hex(6)}",
        )
        phones.append(made)
        return made

    yield make
    for each in phones:
        await each.close()
