"""Tokens: a JWT in, a ``Principal`` out, or a ``TokenError``; and the tokens of the demo and the command line.

What is accepted is fixed by the configured key, never by the token: HS256 with the demo's secret, or ES256 and
EdDSA (Ed25519) with the public keys of a file. PyJWT checks the signature only; every claim is checked here, against
the ``now`` of the caller, because PyJWT alone accepts ``exp`` 2**70 and an empty ``sub``.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from msgspec import Meta

from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Id

MAX_TOKEN_BYTES = 4096
#: A doctor's shift; a stolen token is worth no more.
MAX_LIFETIME_S = 43_200
#: Clocks of an identity provider and a gateway, both kept by NTP, differ by less.
LEEWAY_S = 5
#: How often a key file is looked at: a rotation with overlapping keys waits, a storm of unknown key ids costs nothing.
RELOAD_S = 30
#: RFC 7518, section 3.2: an HS256 key is at least as long as its hash.
MIN_SECRET_BYTES = 32
MAX_KEY_FILE_BYTES = 262_144
#: The key id of tokens that ``mint`` signs.
DEMO_KEY_ID = "demo"

#: Header parameters that a token may have; the thumbprints say which certificate, and are not needed. ``jku``,
#: ``x5u``, ``jwk`` and ``x5c`` would bring a key along, ``crit`` and ``b64`` change what is signed.
_HEADER = frozenset({"alg", "typ", "kid", "x5t", "x5t#S256"})
_TYPES = frozenset({"jwt", "at+jwt"})
_KEY_ID = re.compile(r"[A-Za-z0-9._:@+=\-]{1,128}")
#: The year 9999: what comes after is no time.
_MAX_TIME_S = 253_402_300_799
_Time = Annotated[int, Meta(ge=0, le=_MAX_TIME_S)] | Annotated[float, Meta(ge=0, le=_MAX_TIME_S)]


class TokenError(RemoteProtocolError):
    """A token or a path is refused: ``unauthorized``, ``token_expired`` or ``forbidden``.

    ``detail`` names the rule ("signature", "exp", "department"), never what the token holds.
    """


class TokenConfigError(ValueError):
    """The keys or limits that tokens are checked with cannot be used; the text names the file and the reason."""


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens are checked with. Exactly one of ``secret``, ``public_key_file`` and ``jwks_file`` is given.

    secret: the demo's, at least 32 bytes: HS256. Whoever holds it can be anybody.
    public_key_file: PEM of one public key, P-256 (ES256) or Ed25519 (EdDSA).
    jwks_file: a JSON Web Key Set (RFC 7517) of such keys, each with a ``kid``, by which tokens choose.
    """

    secret: bytes = b""
    public_key_file: Path | None = None
    jwks_file: Path | None = None
    issuer: str = "chatd"
    audience: str = "chatd"
    max_lifetime_s: int = MAX_LIFETIME_S
    leeway_s: int = LEEWAY_S
    reload_s: int = RELOAD_S

    def __post_init__(self) -> None:
        given = [bool(self.secret), self.public_key_file is not None, self.jwks_file is not None]
        if sum(given) != 1:
            raise TokenConfigError("tokens need exactly one of a secret, a public key file and a JWKS file")
        if self.secret and len(self.secret) < MIN_SECRET_BYTES:
            raise TokenConfigError(f"the token secret has fewer than {MIN_SECRET_BYTES} bytes")
        if not self.issuer or not self.audience:
            raise TokenConfigError("tokens need an issuer and an audience")
        if not 0 < self.max_lifetime_s <= MAX_LIFETIME_S:
            raise TokenConfigError(f"tokens may live 1 to {MAX_LIFETIME_S} seconds")
        if self.leeway_s < 0 or self.reload_s <= 0:
            raise TokenConfigError("token times must be above 0")


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token says is speaking. Times are seconds since 1970, UTC; ``token_id`` is what a revocation names."""

    user_id: str
    name: str
    roles: tuple[str, ...]
    departments: tuple[str, ...]
    expires_at_s: float
    token_id: str
    device: str | None = None
    issued_at_s: float = 0.0


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


class _Key(msgspec.Struct, frozen=True):
    """One key and the one algorithm that it may be used with."""

    algorithm: str
    key: Any


class TokenVerifier:
    """Checks tokens with the configured keys; no method waits for anything but a local file of some kilobytes."""

    def __init__(self, config: TokenConfig) -> None:
        """Load the keys. Raises TokenConfigError if there is none to use."""
        self._config = config
        self._file: _KeyFile | None = None
        if config.jwks_file is not None:
            self._file = _KeyFile(config.jwks_file, _keys_of_jwks, config.reload_s)
        elif config.public_key_file is not None:
            self._file = _KeyFile(config.public_key_file, _keys_of_pem, config.reload_s)

    @property
    def keys_error(self) -> str | None:
        """Why the key file could not be read again, while its last good keys stay in use; None when all is well."""
        return None if self._file is None else self._file.error

    def verify(self, token: str, *, now: datetime) -> Principal:
        """Who speaks with ``token`` at ``now``.

        Raises:
            TokenError: ``token_expired`` if it was good until a moment ago (``now`` is at or after ``exp``),
                ``unauthorized`` for every other fault.
        """
        now_s = now.timestamp()
        key = self._key_of(self._header_of(token), now_s)
        try:
            signed = jwt.PyJWS(algorithms=[key.algorithm]).decode_complete(token, key.key, algorithms=[key.algorithm])
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _refused("signature") from None
        try:
            claims = msgspec.json.decode(signed["payload"], type=_Claims)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
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
        )

    def _header_of(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise _refused("size")
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
        if key_id is not None and (not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None):
            raise _refused("kid")
        return header

    def _key_of(self, header: dict[str, Any], now_s: float) -> _Key:
        key_id = header.get("kid")
        if self._file is None:
            if key_id not in (None, DEMO_KEY_ID):
                raise _refused("kid")
            key: _Key | None = _Key("HS256", self._config.secret)
        else:
            keys = self._file.keys(now_s)
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


class _KeyFile:
    """The keys of a file, read again when the file has changed, and looked at once in ``reload_s`` at most.

    A changed file that cannot be used leaves the last good keys in use and says why in ``error``.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], dict[str, _Key]], reload_s: float) -> None:
        self._path = path
        self._parse = parse
        self._reload_s = reload_s
        self._looked_at_s: float | None = None
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, _Key] = {}
        self.error: str | None = None
        self._load()
        if self.error is not None:
            raise TokenConfigError(f"{path}: {self.error}")

    def keys(self, now_s: float) -> dict[str, _Key]:
        """Keys by their ids. A clock that was set back counts as time passed."""
        if self._looked_at_s is None or abs(now_s - self._looked_at_s) >= self._reload_s:
            self._looked_at_s = now_s
            self._load()
        return self._keys

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


def _keys_of_pem(data: bytes) -> dict[str, _Key]:
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise TokenConfigError("not a PEM public key") from None
    return {"": _with_algorithm(key)}


def _keys_of_jwks(data: bytes) -> dict[str, _Key]:
    """The keys of a set by ``kid``. Keys of other kinds or uses are passed over, as RFC 7517, section 5 says."""
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any])["keys"]
        entries = msgspec.convert(entries, list[dict[str, Any]])
    except (msgspec.MsgspecError, KeyError, RecursionError):
        raise TokenConfigError("not a JSON Web Key Set") from None
    keys: dict[str, _Key] = {}
    for entry in entries:
        if (entry.get("kty"), entry.get("crv")) not in (("EC", "P-256"), ("OKP", "Ed25519")):
            continue
        if entry.get("use", "sig") != "sig":
            continue
        if "d" in entry:
            raise TokenConfigError("holds a private key; publish its public part only")
        key_id = entry.get("kid")
        if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
            raise TokenConfigError("a key without a usable kid")
        if key_id in keys:
            raise TokenConfigError("two keys with one kid")
        try:
            key = jwt.PyJWK.from_dict({name: entry[name] for name in ("kty", "crv", "x", "y") if name in entry})
            keys[key_id] = _with_algorithm(key.key)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenConfigError("a key that is none") from None
        if entry.get("alg", keys[key_id].algorithm) != keys[key_id].algorithm:
            raise TokenConfigError("a key whose alg is not its own")
    if not keys:
        raise TokenConfigError("no P-256 or Ed25519 key for signatures")
    return keys


def _with_algorithm(key: object) -> _Key:
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return _Key("ES256", key)
    if isinstance(key, Ed25519PublicKey):
        return _Key("EdDSA", key)
    raise TokenConfigError("neither a P-256 nor an Ed25519 public key")


def _refused(rule: str) -> TokenError:
    return TokenError(ErrorCode.UNAUTHORIZED, rule)
