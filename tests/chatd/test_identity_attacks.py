"""Attacks by token and by Origin, as data: each is refused by the rule that it breaks, and none is accepted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from chatd.gateway.auth import TokenConfig, TokenError, TokenVerifier
from chatd.gateway.gate import is_our_page
from protocols.errors import ErrorCode
from tests.identity_attacks import ATTACKS, ORIGIN_ATTACKS, TOKEN_ATTACKS, Forge

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)
NOW_S = int(NOW.timestamp())


@pytest.fixture(scope="module")
def forge() -> Forge:
    """The keys of a provider."""
    return Forge()


@pytest.fixture(scope="module")
def verifier(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    """A verifier with all of the provider's keys and every algorithm that a provider may use."""
    path: Path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_bytes(forge.jwks())
    return TokenVerifier(TokenConfig(jwks_file=path, algorithms=("ES256", "EdDSA", "RS256")))


def test_attacks_are_enough_and_have_names() -> None:
    """At least 60 attacks, each with a name of its own."""
    assert len(ATTACKS) >= 60
    assert len(TOKEN_ATTACKS) + len(ORIGIN_ATTACKS) == len(ATTACKS)


@pytest.mark.parametrize("key", ["es", "ed", "rsa"])
def test_token_that_nothing_was_done_to_is_good(forge: Forge, verifier: TokenVerifier, key: str) -> None:
    """What all attacks begin with is accepted, with each kind of key: so each fails by what was done to it."""
    assert verifier.verify(forge.make({"key": key}, NOW_S), now=NOW).user_id == "dr.teste"


@pytest.mark.parametrize("name", TOKEN_ATTACKS)
def test_token_attack_is_refused_by_its_rule(forge: Forge, verifier: TokenVerifier, name: str) -> None:
    """The attack breaks the rule that its line names; the refusal repeats nothing of the token."""
    attack: dict[str, Any] = TOKEN_ATTACKS[name]
    with pytest.raises(TokenError) as refused:
        verifier.verify(forge.make(attack["make"], NOW_S), now=NOW)
    assert refused.value.detail == attack["expected"]
    assert refused.value.code in (ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED)
    assert (refused.value.code is ErrorCode.TOKEN_EXPIRED) == name.startswith("run out")


@pytest.mark.parametrize("name", ORIGIN_ATTACKS)
def test_origin_attack_is_refused(name: str) -> None:
    """A page of another origin opens no socket, whatever it calls itself."""
    attack = ORIGIN_ATTACKS[name]
    assert not is_our_page(attack["origin"], attack["host"], frozenset(attack["allowed"]))


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "chat.hospital.example", ()),
        ("https://chat.hospital.example", "chat.hospital.example", ()),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", ()),
        ("https://Chat.Hospital.Example", "chat.hospital.example", ()),
        ("https://chat.hospital.example", "chatd:8080", ("https://chat.hospital.example",)),
    ],
)
def test_own_page_is_let_in(origin: str | None, host: str, allowed: tuple[str, ...]) -> None:
    """No browser, the page of this host, and a listed origin behind a proxy may open sockets."""
    assert is_our_page(origin, host, frozenset(allowed))
