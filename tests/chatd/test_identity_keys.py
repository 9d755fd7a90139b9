"""Keys from a pinned address, against a provider over TLS: rotation, no storm, and what happens while it is away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chatd.gateway.auth import TokenConfig, TokenError, TokenVerifier
from chatd.identity.jwks import TokenConfigError
from protocols.errors import ErrorCode
from tests.fakes.oidc_provider import Mood, Provider, make_authority, rules_file, running


class HandClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.wall = datetime.now(UTC)
        self.ms = 1_000

    def now(self) -> datetime:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.ms

    def move(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.ms += round(seconds * 1000)


class Place:
    """A provider, and verifiers that take their keys from it."""

    def __init__(self, provider: Provider, ca: Path, folder: Path) -> None:
        self.provider = provider
        self.clock = HandClock()
        self.cache = folder / "provider.jwks"
        self.options: dict[str, Any] = {
            "jwks_url": f"{provider.url}/jwks",
            "jwks_ca_file": ca,
            "jwks_cache": self.cache,
            "claims_file": rules_file(folder),
            "issuer": provider.url,
            "algorithms": ("ES256", "EdDSA", "RS256"),
        }

    def verifier(self, **changes: Any) -> TokenVerifier:
        return TokenVerifier(TokenConfig(**(self.options | changes)), self.clock)

    async def user_of(self, verifier: TokenVerifier, token: str) -> str:
        return (await verifier.authenticate(token, now=self.clock.now())).user_id

    async def refused(self, verifier: TokenVerifier, token: str) -> TokenError:
        with pytest.raises(TokenError) as error:
            await verifier.authenticate(token, now=self.clock.now())
        return error.value


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A running provider that signs with ES256."""
    provider = Provider(ttl_s=40_000)
    with running(provider, tmp_path) as ca:
        yield Place(provider, ca, tmp_path)


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
async def test_keys_of_an_address_verify_the_providers_tokens(tmp_path: Path, algorithm: Any) -> None:
    """The first token brings the keys: groups become roles and departments, whatever the provider signs with."""
    provider = Provider(algorithm)
    with running(provider, tmp_path) as ca:
        place = Place(provider, ca, tmp_path)
        principal = await place.verifier().authenticate(provider.person("u-1"), now=place.clock.now())
    assert (principal.user_id, principal.roles, principal.departments) == (
        "dr.santos.cardio",
        ("physician",),
        ("cardiology",),
    )
    assert principal.key_id == provider.signing


async def test_rotation_with_overlap_refuses_nobody(place: Place) -> None:
    """A new key is fetched when its first token comes; tokens of the old one stay good until it is withdrawn."""
    verifier = place.verifier()
    old_key, old = place.provider.signing, place.provider.person("u-1")
    await place.user_of(verifier, old)
    place.clock.move(31)
    place.provider.rotate()
    new = place.provider.person("u-1")
    assert await place.user_of(verifier, new) == await place.user_of(verifier, old)
    principal = verifier.verify(old, now=place.clock.now())
    place.provider.retire(old_key)
    place.clock.move(31)
    await verifier.refresh(place.clock.now())
    assert (await place.refused(verifier, old)).detail == "kid"
    assert not verifier.trusts(principal, place.clock.now())
    assert await place.user_of(verifier, new) == "dr.santos.cardio"


async def test_unknown_keys_are_asked_for_once_in_thirty_seconds(place: Place) -> None:
    """Hundreds of tokens with unknown keys, many at once, make one request in 30 s, and are all refused."""
    verifier = place.verifier()
    await place.user_of(verifier, place.provider.person("u-1"))
    stranger = Provider()
    stranger.url = place.provider.url
    bad = stranger.person("u-1")
    asked = place.provider.key_asks
    for _ in range(3):
        place.clock.move(5)
        await asyncio.gather(*(place.refused(verifier, bad) for _ in range(100)))
    assert place.provider.key_asks == asked
    place.clock.move(20)
    for error in await asyncio.gather(*(place.refused(verifier, bad) for _ in range(100))):
        assert error.code is ErrorCode.UNAUTHORIZED
    assert place.provider.key_asks == asked + 1


@pytest.mark.parametrize("mood", ["down", "garbage", "huge", "elsewhere", "private"])
async def test_address_that_is_away_leaves_the_last_keys_for_a_day(place: Place, mood: Mood) -> None:
    """While the address fails in any way the known keys are used, and after the bound nobody is let in or blamed."""
    verifier = place.verifier(jwks_stale_s=3_600.0)
    token = place.provider.person("u-1")
    await place.user_of(verifier, token)
    place.provider.mood = mood
    place.clock.move(3_600)
    await verifier.refresh(place.clock.now())
    assert verifier.keys_error
    assert await place.user_of(verifier, token) == "dr.santos.cardio"
    place.clock.move(1)
    assert (await place.refused(verifier, token)).code is ErrorCode.INTERNAL
    assert not verifier.has_keys(place.clock.now())
    # What is connected stays: it is not known that its key was withdrawn.
    place.provider.mood = "well"
    place.clock.move(31)
    assert await place.user_of(verifier, token) == "dr.santos.cardio"
    assert verifier.keys_error is None


async def test_gateway_starts_with_the_kept_keys_while_the_address_is_away(place: Place) -> None:
    """A copy of the key set lets a new process verify; it ages, and one from the future is as old as now."""
    token = place.provider.person("u-1")
    await place.user_of(place.verifier(), token)
    place.provider.mood = "down"
    assert await place.user_of(place.verifier(), token) == "dr.santos.cardio"
    old_s = place.clock.now().timestamp() - 90_000
    os.utime(place.cache, (old_s, old_s))
    assert (await place.refused(place.verifier(), token)).code is ErrorCode.INTERNAL
    place.cache.write_text("garbage")
    assert (await place.refused(place.verifier(), token)).code is ErrorCode.INTERNAL
    place.cache.unlink()
    assert (await place.refused(place.verifier(), token)).code is ErrorCode.INTERNAL


async def test_address_with_a_certificate_of_another_authority_is_not_believed(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only the pinned authority's certificate counts: keys of anybody else are never taken."""
    other, _, _ = make_authority(tmp_path_factory.mktemp("other"))
    for ca in (other, None):
        verifier = place.verifier(jwks_ca_file=ca, jwks_cache=None)
        assert (await place.refused(verifier, place.provider.person("u-1"))).code is ErrorCode.INTERNAL
    assert place.provider.key_asks == 0


async def test_keys_are_kept_fresh_in_the_background(place: Place) -> None:
    """The background task fetches at once; a token then needs no request of its own."""
    verifier = place.verifier()
    task = asyncio.create_task(verifier.run())
    try:
        async with asyncio.timeout(10):
            while not verifier.has_keys(place.clock.now()):  # noqa: ASYNC110 - a thread answers
                await asyncio.sleep(0.01)
        assert verifier.verify(place.provider.person("u-1"), now=place.clock.now()).user_id == "dr.santos.cardio"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert place.provider.key_asks == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://login.hospital.example/jwks",
        "https://",
        "ftp://login.hospital.example/jwks",
        "https://user:secret@login.hospital.example/jwks",
        "file:///etc/passwd",
        "login.hospital.example",
    ],
)
def test_address_that_is_none_or_not_private_stops_the_start(url: str) -> None:
    """Only HTTPS, or plain HTTP on this machine, is taken, and no password in an address."""
    with pytest.raises(TokenConfigError):
        TokenVerifier(TokenConfig(jwks_url=url))


def test_authority_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """A CA file that is missing or holds no certificate is told at the start."""
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(TokenConfigError, match=name):
            TokenVerifier(TokenConfig(jwks_url="https://login.hospital.example/jwks", jwks_ca_file=tmp_path / name))


@pytest.mark.parametrize("algorithms", [(), ("HS256",), ("none",), ("es256",), ("ES256", "PS256"), ("",)])
def test_algorithms_are_of_the_known_ones(algorithms: tuple[str, ...], tmp_path: Path) -> None:
    """HS256 and anything unknown cannot be configured for a provider."""
    with pytest.raises(TokenConfigError):
        TokenConfig(jwks_file=tmp_path / "jwks.json", algorithms=algorithms)
