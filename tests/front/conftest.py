"""One demo hospital with two gateways on Unix sockets, and one nginx before them, for all tests of the front."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.chat_client import ChatClient
from tests.front.front_nginx import Front
from tests.server import Hospital, hospital

ENV = {"CHATD_MESSAGES_PER_MINUTE": "100000", "CHATD_SWEEP_INTERVAL_S": "0.2", "CHATD_DRAIN_SPREAD_S": "1"}


@pytest.fixture(scope="session")
def place() -> Iterator[Hospital]:
    """A running ``chatd up``; its own gateway is not behind nginx."""
    with hospital(env=ENV) as running:
        yield running


@pytest.fixture(scope="session")
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def front(place: Hospital, sockets: Path) -> Iterator[Front]:
    """nginx before the gateways ``a`` and ``b``."""
    gateways = {}
    for name in ("a", "b"):
        path = sockets / f"{name}.sock"
        place.serve({"CHATD_UDS": str(path)})
        gateways[name] = f"unix:{path}"
    made = Front(gateways)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def trusting(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries of this process trust the hospital's authority, as an installed certificate has them do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(front.authority.ca))


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
async def phone(front: Front, trusting: None, tokens: Callable[..., str]) -> AsyncIterator[Callable[..., ChatClient]]:
    """Makes phones that come through nginx; closes them at the end."""
    phones: list[ChatClient] = []

    def make(user: str = "dr.santos.cardio", department: str = "cardiology") -> ChatClient:
        made = ChatClient(
            front.url,
            department=department,
            user_id=user,
            token=tokens(user, department),
            session_id=f"sess_{secrets.token_hex(6)}",
        )
        phones.append(made)
        return made

    yield make
    for each in phones:
        await each.close()
