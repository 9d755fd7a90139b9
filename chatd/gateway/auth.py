"""Tokens: a JWT in, a ``Principal`` out, or a ``TokenError``; and the tokens of the demo and the command line.

What is accepted is fixed by the configured key, never by the token: HS256 with the demo's secret, or ES256, EdDSA
(Ed25519) and RS256 with public keys (``identity.jwks``). PyJWT checks the signature only; every claim is checked here,
against the ``now`` of the caller, because PyJWT alone accepts ``exp`` 2**70 and an empty ``sub``.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta

from chatd.clock import Clock, SystemClock
from chatd.identity import claims as claim_rules
from chatd.identity.jwks import (
    ALGORITHMS,
    KEY_ID,
    Key,
    KeyFile,
    KeysUnavailable,
    KeyUrl,
    TokenConfigError,
    keys_of_jwks,
    keys_of_pem,
)
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Id

MAX_TOKEN_BYTES = 4096
#: A doctor's shift; a stolen token is worth no more.
MAX_LIFETIME_S = 43_200
#: Clocks of an identity provider and a gateway, both kept by NTP, differ by less.
LEEWAY_S = 5
#: How often a source of keys is looked at: a rotation with overlapping keys waits, a storm of unknown key ids costs
#: nothing.
RELOAD_S = 30
#: RFC 7518, section 3.2: an HS256 key is at least as long as its hash.
MIN_SECRET_BYTES = 32
#: The key id of tokens that ``mint`` signs.
DEMO_KEY_ID = "demo"

#: Header parameters that a token may have; the thumbprints say which certificate, and are not needed. ``jku``,
#: ``x5u``, ``jwk`` and ``x5c`` would bring a key along, ``crit`` and ``b64`` change what is signed.
_HEADER = frozenset({"alg", "typ", "kid", "x5t", "x5t#S256"})
#: RFC 7515, section 7.1: three parts of base64url without padding; the last is empty where nobody signed.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_TYPES = frozenset({"jwt", "at+jwt"})
#: The year 9999: what comes after is no time.
_MAX_TIME_S = 253_402_300_799
_Time = Annotated[int, Meta(ge=0, le=_MAX_TIME_S)] | Annotated[float, Meta(ge=0, le=_MAX_TIME_S)]


class TokenError(RemoteProtocolError):
    """A token or a path is refused: ``unauthorized``, ``token_expired``, ``forbidden``, or ``internal`` (no keys).

    ``detail`` names the rule ("signature", "exp", "department"), never what the token holds.
    """


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens are checked with. Exactly one of ``secret`` and the three sources of public keys is given.

    secret: the demo's, at least 32 bytes: HS256. Whoever holds it can be anybody.
    public_key_file: PEM of one public key, P-256 (ES256), Ed25519 (EdDSA) or RSA (RS256).
    jwks_file: a JSON Web Key Set (RFC 7517) of such keys, each with a ``kid``, by which tokens choose.
    jwks_url: where to fetch such a set, with the authority ``jwks_ca_file``, a copy in ``jwks_cache``, and for how
        long it may be away.
    algorithms: what public keys may be used for; the demo's secret is for HS256 alone.
    claims_file: how a provider's claims become roles and departments; None: tokens carry these themselves.
    """

    secret: bytes = b""
    public_key_file: Path | None = None
    jwks_file: Path | None = None
    jwks_url: str = ""
    jwks_ca_file: Path | None = None
    jwks_cache: Path | None = None
    jwks_stale_s: float = 86_400.0
    algorithms: tuple[str, ...] = ("ES256", "EdDSA")
    claims_file: Path | None = None
    issuer: str = "chatd"
    audience: str = "chatd"
    max_lifetime_s: int = MAX_LIFETIME_S
    leeway_s: int = LEEWAY_S
    reload_s: int = RELOAD_S

    def __post_init__(self) -> None:
        sources = (self.secret, self.public_key_file, self.jwks_file, self.jwks_url)
        if sum(bool(source) for source in sources) != 1:
            raise TokenConfigError(
                "tokens need exactly one of a secret, a public key file, a JWKS file and a JWKS address"
            )
        if not self.algorithms or not set(self.algorithms) <= set(ALGORITHMS):
            raise TokenConfigError(f"tokens may be signed with {', '.join(ALGORITHMS)}, and with at least one of them")
        if self.secret and len(self.secret) < MIN_SECRET_BYTES:
            raise TokenConfigError(f"the token secret has fewer than {MIN_SECRET_BYTES} bytes")
        if not self.issuer or not self.audience:
            raise TokenConfigError("tokens need an issuer and an audience")
        if not 0 < self.max_lifetime_s <= MAX_LIFETIME_S:
            raise TokenConfigError(f"tokens may live 1 to {MAX_LIFETIME_S} seconds")
        if self.leeway_s < 0 or self.reload_s <= 0 or self.jwks_stale_s <= 0:
            raise TokenConfigError("token times must be above 0")


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token says is speaking. Times are seconds since 1970, UTC; ``token_id`` is what a revocation names.

    ``key_id``: what it was signed with; empty where there is one key without a name.
    """

    user_id: str
    name: str
    roles: tuple[str, ...]
    departments: tuple[str, ...]
    expires_at_s: float
    token_id: str
    device: str | None = None
    issued_at_s: float = 0.0
    key_id: str = ""


#: A provider's own name of somebody; no form but a length.
_Subject = Annotated[str, Meta(min_length=1, max_length=255)]


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims that a token must have, with their forms; others are ignored."""

    iss: str
    aud: str | Annotated[tuple[str, ...], Meta(max_length=16)]
    sub: Id
    jti: Id
    iat: _Time
    exp: _Time
    departments: Annotated[tuple[Id, ...], Meta(max_length=64)]
    roles: Annotated[tuple[Id, ...], Meta(max_length=64)]
    nbf: _Time | None = None
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    device: Id | None = None


class TokenVerifier:
    """Checks tokens with the configured keys; what is not a coroutine waits for a local file of kilobytes at most."""

    def __init__(self, config: TokenConfig, clock: Clock | None = None) -> None:
        """Load the keys. Raises TokenConfigError if there is none to use; those of an address may come later."""
        self._config = config
        self._rules = None if config.claims_file is None else claim_rules.load(config.claims_file)
        self._source: KeyFile | KeyUrl | None = None
        allowed = frozenset(config.algorithms)
        if config.jwks_file is not None:
            self._source = KeyFile(config.jwks_file, lambda data: keys_of_jwks(data, allowed), config.reload_s)
        elif config.public_key_file is not None:
            self._source = KeyFile(config.public_key_file, lambda data: keys_of_pem(data, allowed), config.reload_s)
        elif config.jwks_url:
            self._source = KeyUrl(
                config.jwks_url,
                lambda data: keys_of_jwks(data, allowed),
                clock=clock or SystemClock(),
                ca_file=config.jwks_ca_file,
                cache=config.jwks_cache,
                reload_s=config.reload_s,
                stale_s=config.jwks_stale_s,
            )

    @property
    def keys_error(self) -> str | None:
        """Why the keys could not be read again, while the last good ones stay in use; None when all is well."""
        return None if self._source is None else self._source.error

    def has_keys(self, now: datetime) -> bool:
        """Whether anybody can be let in at all."""
        try:
            return self._source is None or bool(self._source.keys(now.timestamp()))
        except KeysUnavailable:
            return False

    def trusts(self, principal: Principal, now: datetime) -> bool:
        """Whether the key that a token was signed with still is one; while keys cannot be had, it is."""
        if self._source is None or not principal.key_id:
            return True
        try:
            keys = self._source.keys(now.timestamp())
        except KeysUnavailable:
            return True
        return "" in keys or principal.key_id in keys

    async def run(self) -> None:
        """Keep the keys of an address fresh; ends at once where they are in a file."""
        if self._source is not None:
            await self._source.run()

    async def refresh(self, now: datetime) -> None:
        """Fetch the keys of an address, unless that was done in the last 30 s. Raises nothing, ends within 3 s."""
        if self._source is not None:
            await self._source.refresh(now.timestamp())

    async def authenticate(self, token: str, *, now: datetime) -> Principal:
        """As ``verify``; keys that are not known here are asked for once, 3 s at most."""
        try:
            return self.verify(token, now=now)
        except TokenError as error:
            if error.detail not in ("kid", "keys"):
                raise
        await self.refresh(now)
        return self.verify(token, now=now)

    def verify(self, token: str, *, now: datetime) -> Principal:
        """Who speaks with ``token`` at ``now``, by the keys that are known here.

        Raises:
            TokenError: ``token_expired`` if it was good until a moment ago (``now`` is at or after ``exp``),
                ``internal`` where no keys can be had, ``unauthorized`` for every other fault.
        """
        now_s = now.timestamp()
        header = self._header_of(token)
        key = self._key_of(header, now_s)
        try:
            signed = jwt.PyJWS(algorithms=[key.algorithm]).decode_complete(token, key.key, algorithms=[key.algorithm])
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _refused("signature") from None
        try:
            claims = self._claims_of(signed["payload"])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, claim_rules.ClaimError):
            raise _refused("claims") from None
        self._check(claims, now_s)
        return Principal(
            user_id=claims.sub,
            name=claims.sub if claims.name is None else claims.name,
            roles=claims.roles,
            departments=claims.departments,
            expires_at_s=float(claims.exp),
            token_id=claims.jti,
            device=claims.device,
            issued_at_s=float(claims.iat),
            key_id=header.get("kid", ""),
        )

    def _claims_of(self, payload: bytes) -> _Claims:
        if self._rules is None:
            return msgspec.json.decode(payload, type=_Claims)
        raw = msgspec.json.decode(payload, type=dict[str, Any])
        # Required also where the user's name stands elsewhere.
        msgspec.convert(raw.get("sub"), _Subject)
        return msgspec.convert(claim_rules.mapped(self._rules, raw), _Claims)

    def _header_of(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise _refused("size")
        # Base64 decoders pass over what is no letter of theirs.
        if _COMPACT.fullmatch(token) is None:
            raise _refused("form")
        # Only to choose the key: PyJWT reads the whole token again, and more strictly, when it checks the signature.
        first = token.partition(".")[0]
        try:
            header = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
        except (ValueError, RecursionError):
            raise _refused("form") from None
        if not isinstance(header, dict):
            raise _refused("form")
        if not header.keys() <= _HEADER:
            raise _refused("header")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _refused("typ")
        key_id = header.get("kid")
        if key_id is not None and (not isinstance(key_id, str) or KEY_ID.fullmatch(key_id) is None):
            raise _refused("kid")
        return header

    def _key_of(self, header: dict[str, Any], now_s: float) -> Key:
        key_id = header.get("kid")
        if self._source is None:
            if key_id not in (None, DEMO_KEY_ID):
                raise _refused("kid")
            key: Key | None = Key("HS256", self._config.secret)
        else:
            try:
                keys = self._source.keys(now_s)
            except KeysUnavailable:
                raise TokenError(ErrorCode.INTERNAL, "keys") from None
            # A PEM file has one key without an id, which fits whatever id the issuer gave it.
            key = keys[""] if "" in keys else keys.get(key_id or "")
        if key is None:
            raise _refused("kid")
        if header.get("alg") != key.algorithm:
            raise _refused("alg")
        return key

    def _check(self, claims: _Claims, now_s: float) -> None:
        config = self._config
        audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        lifetime_s = claims.exp - claims.iat
        rules = (
            ("iss", claims.iss == config.issuer),
            ("aud", config.audience in audiences),
            ("iat", claims.iat <= now_s + config.leeway_s),
            ("nbf", claims.nbf is None or claims.nbf <= now_s + config.leeway_s),
            ("exp", 0 < lifetime_s <= config.max_lifetime_s),
            # A name goes to screens and logs: no control characters, no text that runs backwards.
            ("name", claims.name is None or claims.name.isprintable()),
        )
        for rule, kept in rules:
            if not kept:
                raise _refused(rule)
        # Last, so that only a token that is good in all else is told to fetch the next one. No leeway: a socket
        # is closed within a second of its token's end.
        if now_s >= claims.exp:
            raise TokenError(ErrorCode.TOKEN_EXPIRED, "exp")


def check_path(principal: Principal, department: str, user_id: str) -> None:
    """The path of a connection must equal the token's claims.

    Raises TokenError ``forbidden`` for another user's path, or a department that the token does not name.
    """
    if user_id != principal.user_id:
        raise TokenError(ErrorCode.FORBIDDEN, "user_id")
    if department not in principal.departments:
        raise TokenError(ErrorCode.FORBIDDEN, "department")


def mint(
    secret: bytes,
    *,
    user_id: str,
    departments: Sequence[str],
    roles: Sequence[str],
    ttl_s: int,
    now: datetime,
    name: str = "",
    issuer: str = "chatd",
    audience: str = "chatd",
    device: str | None = None,
) -> str:
    """An HS256 token as the demo's sign-in and ``chatd token`` hand out; each call has a new ``jti``.

    Raises ValueError for what ``TokenVerifier`` would refuse: a short secret, a lifetime above 12 hours, ids that
    are none.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the token secret has fewer than {MIN_SECRET_BYTES} bytes")
    if not 0 < ttl_s <= MAX_LIFETIME_S:
        raise ValueError(f"a token lives 1 to {MAX_LIFETIME_S} seconds")
    issued_at_s = int(now.timestamp())
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": user_id,
        "jti": secrets.token_hex(16),
        "iat": issued_at_s,
        "exp": issued_at_s + ttl_s,
        "departments": list(departments),
        "roles": list(roles),
        "name": name or user_id,
    }
    if device is not None:
        claims["device"] = device
    try:
        msgspec.convert(claims, _Claims)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if not claims["name"].isprintable():
        raise ValueError("a name has no control characters")
    token = jwt.encode(claims, secret, algorithm="HS256", headers={"kid": DEMO_KEY_ID})
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    return token


def _refused(rule: str) -> TokenError:
    return TokenError(ErrorCode.UNAUTHORIZED, rule)
