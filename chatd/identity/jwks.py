"""The public keys that tokens are checked with: from a PEM file, a key set file, or one pinned internal address.

A key brings its one algorithm along; what a token says of itself chooses nothing but the key. A source is looked at
once in 30 s at most, whatever tokens arrive, and the last good keys stay in use while it is away or broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from chatd.clock import Clock
from chatd.logs import error_name

log = structlog.get_logger(__name__)

#: What a real provider may sign with. HS256 is the demo's alone, and stands in no list.
ALGORITHMS: Final = ("ES256", "EdDSA", "RS256")
MAX_KEY_FILE_BYTES: Final = 262_144
KEY_ID: Final = re.compile(r"[A-Za-z0-9._:@+=\-]{1,128}")
#: NIST SP 800-57 part 1, table 2: 112 bits of strength at least. Above the upper bound a check costs milliseconds.
_RSA_BITS: Final = range(2048, 8193)
#: NIST SP 800-56B, 6.2: a public exponent is odd and above 2**16.
_RSA_LEAST_EXPONENT: Final = 65_537
#: A provider inside the hospital answers in milliseconds; who waits for this is a doctor.
_FETCH_S: Final = 3.0
#: A key that was withdrawn is noticed within this, also when no token with an unknown key id comes.
_EVERY_S: Final = 300
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class TokenConfigError(ValueError):
    """The keys or limits that tokens are checked with cannot be used; the text names the file and the reason."""


class KeysUnavailable(Exception):
    """No key is known, or none that is young enough: nobody can be told good from bad."""


class Key(msgspec.Struct, frozen=True):
    """One key and the one algorithm that it may be used with."""

    algorithm: str
    key: Any


Keys = Mapping[str, Key]
Parse = Callable[[bytes], Keys]


def keys_of_pem(data: bytes, algorithms: frozenset[str]) -> Keys:
    """The one key of a PEM file under the id "", which fits whatever id its issuer gave it."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise TokenConfigError("not a PEM public key") from None
    found = _with_algorithm(key)
    if found.algorithm not in algorithms:
        raise TokenConfigError(f"a key for {found.algorithm}, which is not among the configured algorithms")
    return {"": found}


#: Kind and curve of a JWK to the algorithm of its signatures. Source: RFC 7518, section 6; RFC 8037, section 2.
_KINDS: Final[Mapping[tuple[object, object], str]] = {
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
    ("RSA", None): "RS256",
}


def keys_of_jwks(data: bytes, algorithms: frozenset[str]) -> Keys:
    """The keys of a set by ``kid``. Keys of other kinds or uses are passed over, as RFC 7517, section 5 says."""
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any])["keys"]
        entries = msgspec.convert(entries, list[dict[str, Any]])
    except (msgspec.MsgspecError, KeyError, RecursionError, UnicodeDecodeError):
        raise TokenConfigError("not a JSON Web Key Set") from None
    keys: dict[str, Key] = {}
    for entry in entries:
        try:
            algorithm = _KINDS.get((entry.get("kty"), entry.get("crv")))
        except TypeError:
            continue  # a kind that is a list
        if algorithm not in algorithms or entry.get("use", "sig") != "sig":
            continue
        if algorithm == "RS256" and entry.get("alg", algorithm) != algorithm:
            continue  # an RSA key of the provider's for something else
        if "d" in entry:
            raise TokenConfigError("holds a private key; publish its public part only")
        key_id = entry.get("kid")
        if not isinstance(key_id, str) or KEY_ID.fullmatch(key_id) is None:
            raise TokenConfigError("a key without a usable kid")
        if key_id in keys:
            raise TokenConfigError("two keys with one kid")
        public = ("kty", "crv", "x", "y", "n", "e")
        try:
            key = jwt.PyJWK.from_dict({name: entry[name] for name in public if name in entry}, algorithm)
            keys[key_id] = _with_algorithm(key.key)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenConfigError("a key that is none") from None
        if entry.get("alg", algorithm) != keys[key_id].algorithm:
            raise TokenConfigError("a key whose alg is not its own")
    if not keys:
        raise TokenConfigError(f"no key for signatures with {' or '.join(sorted(algorithms))}")
    return keys


def _with_algorithm(key: object) -> Key:
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return Key("ES256", key)
    if isinstance(key, Ed25519PublicKey):
        return Key("EdDSA", key)
    if isinstance(key, RSAPublicKey):
        exponent = key.public_numbers().e
        if key.key_size in _RSA_BITS and exponent >= _RSA_LEAST_EXPONENT and exponent % 2:
            return Key("RS256", key)
        raise TokenConfigError("an RSA key that is too weak or too long")
    raise TokenConfigError("neither a P-256 nor an Ed25519 nor an RSA public key")


class KeyFile:
    """The keys of a file, read again when the file has changed, and looked at once in ``reload_s`` at most.

    A changed file that cannot be used leaves the last good keys in use and says why in ``error``.
    """

    def __init__(self, path: Path, parse: Parse, reload_s: float) -> None:
        """Raises TokenConfigError if there is no key to use."""
        self._path = path
        self._parse = parse
        self._reload_s = reload_s
        self._looked_at_s: float | None = None
        self._seen: tuple[int, int, int] | None = None
        self._keys: Keys = {}
        self.error: str | None = None
        self._load()
        if self.error is not None:
            raise TokenConfigError(f"{path}: {self.error}")

    def keys(self, now_s: float) -> Keys:
        """Keys by their ids. A clock that was set back counts as time passed."""
        if self._looked_at_s is None or abs(now_s - self._looked_at_s) >= self._reload_s:
            self._looked_at_s = now_s
            self._load()
        return self._keys

    async def refresh(self, now_s: float) -> bool:
        """Whether there may be other keys than a moment ago: ``keys`` has looked already."""
        del now_s
        return False

    async def run(self) -> None:
        """Nothing to do in the background."""

    def _load(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            if status.st_size > MAX_KEY_FILE_BYTES:
                raise TokenConfigError("too long for a key file")
            self._keys = self._parse(self._path.read_bytes())
        except OSError as error:
            self.error = error.strerror or "unreadable"
        except TokenConfigError as error:
            self.error = str(error)
        else:
            self._seen = seen
            self.error = None


class KeyUrl:
    """The key set of one pinned address, fetched every five minutes, and for an unknown key id; at most once in
    ``reload_s`` in all, whoever asks, and by one request at a time.

    While the address is away the last good keys stay in use for ``stale_s``: nobody is locked out by a provider that
    is being restarted, and a key that was withdrawn meanwhile does not live for ever. A copy in ``cache`` lets a
    gateway start while the address is away; it holds public keys, and its age counts.
    """

    def __init__(
        self,
        url: str,
        parse: Parse,
        *,
        clock: Clock,
        ca_file: Path | None,
        cache: Path | None,
        reload_s: float,
        stale_s: float,
    ) -> None:
        """Touches the cache only. Raises TokenConfigError for an address or an authority that cannot be used."""
        parts = urlsplit(url)
        is_private = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if not parts.hostname or parts.username is not None or not (parts.scheme == "https" or is_private):
            raise TokenConfigError("the address of the key set must be https://HOST/PATH")
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise TokenConfigError(f"{ca_file}: no certificates of an authority") from None
        self._url = url
        self._parse = parse
        self._clock = clock
        self._cache = cache
        self._reload_s = reload_s
        self._stale_s = stale_s
        self._keys: Keys = {}
        self._fetched_at_s = 0.0
        self._asked_ms: int | None = None
        self._asking: asyncio.Task[bool] | None = None
        self.error: str | None = None
        self._recall()

    def keys(self, now_s: float) -> Keys:
        """Keys by their ids. Raises KeysUnavailable where there are none, or the last ones are too old."""
        if not self._keys or now_s - self._fetched_at_s > self._stale_s:
            raise KeysUnavailable
        return self._keys

    async def refresh(self, now_s: float) -> bool:
        """Ask the address, unless it was asked in the last ``reload_s``; True if its keys were taken.

        Ends within 3 s and raises nothing; ``error`` says what went wrong. Callers that come at once share one
        request, and cancelling one of them does not end it.
        """
        now_ms = self._clock.monotonic_ms()
        if self._asking is None or self._asking.done():
            if self._asked_ms is not None and now_ms - self._asked_ms < self._reload_s * 1000:
                return False
            self._asked_ms = now_ms
            self._asking = asyncio.create_task(self._ask(now_s))
        return await asyncio.shield(self._asking)

    async def run(self) -> None:
        """Keep the keys fresh until cancelled: every five minutes, and every ``reload_s`` while they cannot be had."""
        while True:
            await self.refresh(self._clock.now().timestamp())
            await asyncio.sleep(_EVERY_S if self.error is None else self._reload_s)

    async def _ask(self, now_s: float) -> bool:
        import httpx

        try:
            data = await self._fetch()
            self._keys = self._parse(data)
        except (httpx.HTTPError, TokenConfigError, OSError, TimeoutError) as error:
            self.error = str(error) if isinstance(error, TokenConfigError) else "the address does not answer"
            log.warning("keys_not_fetched", error=error_name(error))
            return False
        self._fetched_at_s = now_s
        self.error = None
        self._keep(data)
        return True

    async def _fetch(self) -> bytes:
        import httpx

        body = bytearray()
        # No proxy and no redirect: the address is pinned. No encoding: what is small must stay small.
        async with (
            asyncio.timeout(_FETCH_S),
            httpx.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False) as client,
            client.stream("GET", self._url, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                raise TokenConfigError(f"the address answers {answer.status_code}")
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_KEY_FILE_BYTES:
                    raise TokenConfigError("too long for a key set")
        return bytes(body)

    def _recall(self) -> None:
        """Take the copy of an earlier run, with its age; one that cannot be used is as good as none."""
        if self._cache is None:
            return
        with contextlib.suppress(OSError, TokenConfigError):
            status = self._cache.stat()
            if status.st_size <= MAX_KEY_FILE_BYTES:
                self._keys = self._parse(self._cache.read_bytes())
                # Not out of the future: it would be young for ever.
                self._fetched_at_s = min(status.st_mtime, self._clock.now().timestamp())

    def _keep(self, data: bytes) -> None:
        if self._cache is None:
            return
        beside = self._cache.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            beside.write_bytes(data)
            os.utime(beside, (self._fetched_at_s, self._fetched_at_s))
            beside.replace(self._cache)
