"""Tokens: good ones become a principal, every kind of bad one is refused with the right code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from chatd.gateway.auth import (
    MAX_LIFETIME_S,
    MAX_TOKEN_BYTES,
    Principal,
    TokenConfig,
    TokenError,
    TokenVerifier,
    check_path,
    mint,
)
from chatd.identity.jwks import TokenConfigError
from protocols.errors import ErrorCode, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
SECRET = b"a demo secret of at least 32 bytes"
VERIFIER = TokenVerifier(TokenConfig(secret=SECRET))
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
CLAIMS: dict[str, Any] = {
    "iss": "chatd",
    "aud": "chatd",
    "sub": "dr.teste",
    "jti": "t-1",
    "iat": NOW_S,
    "exp": NOW_S + 3600,
    "departments": ["cardiology"],
    "roles": ["physician"],
    "name": "Dr. Teste",
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: object = CLAIMS, header: object = None, key: bytes = SECRET, payload: bytes | None = None) -> str:
    """An HS256 token put together by hand, so that nothing keeps a bad one from being made."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    body = json.dumps(claims).encode() if payload is None else payload
    text = f"{b64(json.dumps(header).encode())}.{b64(body)}"
    return f"{text}.{b64(hmac.digest(key, text.encode(), hashlib.sha256))}"


def changed(**claims: object) -> str:
    """A well-signed token with some claims changed; None leaves a claim out."""
    return signed({name: value for name, value in (CLAIMS | claims).items() if value is not None})


def with_header(**header: object) -> str:
    return signed(header={"alg": "HS256", "typ": "JWT"} | header)


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def jwk(key: Any, kid: str, **more: object) -> dict[str, object]:
    algorithm = (
        jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.OKPAlgorithm
    )
    return algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"} | more


def write_jwks(path: Path, *keys: dict[str, object], mtime_s: int = NOW_S) -> Path:
    path.write_text(json.dumps({"keys": list(keys)}))
    os.utime(path, (mtime_s, mtime_s))
    return path


def code_of(verify: Callable[[], object]) -> ErrorCode:
    with pytest.raises(TokenError) as error:
        verify()
    return error.value.code


def test_verify_gives_the_principal_of_the_claims() -> None:
    """A good token becomes the principal that its claims name."""
    assert VERIFIER.verify(changed(device="d-1"), now=NOW) == Principal(
        user_id="dr.teste",
        name="Dr. Teste",
        roles=("physician",),
        departments=("cardiology",),
        expires_at_s=NOW_S + 3600.0,
        token_id="t-1",
        device="d-1",
        issued_at_s=float(NOW_S),
    )


@pytest.mark.parametrize(
    "token",
    [
        changed(name=None),
        changed(aud=["other", "chatd"]),
        changed(departments=[], roles=[]),
        changed(name="João Silva-Müller O'Neil"),
        changed(nbf=NOW_S),
        changed(iat=NOW_S + 5),
        changed(iat=NOW_S - 0.5, exp=NOW_S + 0.5),
        changed(exp=NOW_S + MAX_LIFETIME_S),
        changed(unknown={"deep": [1, 2]}),
        with_header(kid="demo"),
        with_header(typ="at+JWT"),
        with_header(x5t="abc"),
        signed(header={"alg": "HS256"}),
    ],
)
def test_verify_accepts_what_the_rules_allow(token: str) -> None:
    """Optional claims, several audiences, whole and broken seconds are accepted."""
    assert VERIFIER.verify(token, now=NOW).user_id == "dr.teste"


NONE = b64(b'{"alg":"none","typ":"JWT"}')
BODY = b64(json.dumps(CLAIMS).encode())
GOOD = signed()

BAD_TOKENS: dict[str, str] = {
    # form
    "nothing": "",
    "garbage": "garbage",
    "spaces": "   ",
    "two parts": GOOD.rsplit(".", 1)[0],
    "four parts": GOOD + ".x",
    "five parts, as an encrypted token": ".".join(["a"] * 5),
    "only dots": "..",
    "no signature": GOOD.rsplit(".", 1)[0] + ".",
    "bearer word left in": "Bearer " + GOOD,
    "not ASCII": GOOD + "é",
    "NUL at the end": GOOD + "\0",
    "CRLF at the end": GOOD + "\r\n",
    "header is no base64": "!!!." + GOOD.split(".", 1)[1],
    "header is no JSON": b64(b"{") + "." + GOOD.split(".", 1)[1],
    "header is a list": signed(header=["HS256"]),
    "header is null": signed(header="null"),
    "header is deep": b64(b"[" * 2000) + "." + GOOD.split(".", 1)[1],
    "over 4 KB": changed(name="x" * 4000),
    "over 4 KB of unknown claims": changed(more="x" * MAX_TOKEN_BYTES),
    # algorithm and key
    "alg none": f"{NONE}.{BODY}.",
    "alg none, signed": signed(header={"alg": "none"}),
    "alg None, case trick": b64(b'{"alg":"nOnE"}') + f".{BODY}.",
    "alg missing": signed(header={"typ": "JWT"}),
    "alg empty": signed(header={"alg": ""}),
    "alg a list": signed(header={"alg": ["HS256"]}),
    "alg in lower case": signed(header={"alg": "hs256"}),
    "alg HS512": jwt.encode(CLAIMS, SECRET * 2, algorithm="HS512"),
    "alg ES256 with another's key": jwt.encode(CLAIMS, EC_KEY, algorithm="ES256"),
    "payload edited": GOOD.split(".")[0]
    + "."
    + b64(json.dumps(CLAIMS | {"sub": "dr.other"}).encode())
    + "."
    + GOOD.split(".")[2],
    "header edited": b64(b'{"alg":"HS256","typ":"JWT" }') + "." + GOOD.split(".", 1)[1],
    "signature cut": GOOD[:-4],
    "signed by an unknown key": signed(key=b"x" * 32),
    "signed by an empty key": signed(key=b""),
    # header parameters
    "kid of nobody": with_header(kid="k2"),
    "kid SQL injection": with_header(kid="' OR 1=1 --"),
    "kid a path": with_header(kid="../../../dev/null"),
    "kid with NUL": with_header(kid="demo\0"),
    "kid a number": with_header(kid=7),
    "kid empty": with_header(kid=""),
    "jku": with_header(jku="https://keys.example/jwks.json"),
    "x5u": with_header(x5u="https://keys.example/cert.pem"),
    "x5c": with_header(x5c=["MIIB"]),
    "embedded jwk": with_header(jwk={"kty": "oct", "k": b64(SECRET)}),
    "unknown crit": with_header(crit=["exp"]),
    "b64 false": with_header(b64=False, crit=["b64"]),
    "zip": with_header(zip="DEF"),
    "typ of something else": with_header(typ="secevent+jwt"),
    "typ a number": with_header(typ=1),
    # claims: form
    "payload is no JSON": signed(payload=b"sub=dr.teste"),
    "payload is a list": signed([CLAIMS]),
    "payload is null": signed(None),
    "payload is no UTF-8": signed(payload=b'{"sub":"\xff"}'),
    "payload is deep": signed(payload=b'{"a":' + b"[" * 2500),
    **{f"{name} missing": changed(**{name: None}) for name in CLAIMS if name != "name"},
    "exp a string": changed(exp=str(NOW_S + 60)),
    "exp true": changed(exp=True),
    "exp a list": changed(exp=[NOW_S + 60]),
    "exp NaN": signed(payload=json.dumps(CLAIMS).replace(str(NOW_S + 3600), "NaN").encode()),
    "exp infinite": signed(payload=json.dumps(CLAIMS).replace(str(NOW_S + 3600), "1e999").encode()),
    "exp negative": changed(exp=-1),
    "exp 2**70": changed(exp=2**70),
    "exp 2**70 and iat too": changed(exp=2**70, iat=2**70 - 60),
    "iat a string": changed(iat=str(NOW_S)),
    "iat negative": changed(iat=-1),
    "nbf a string": changed(nbf="now"),
    # claims: meaning
    "not yet valid": changed(nbf=NOW_S + 6),
    "issued in the future": changed(iat=NOW_S + 6, exp=NOW_S + 60),
    "exp before iat": changed(iat=NOW_S, exp=NOW_S - 1),
    "exp equals iat": changed(iat=NOW_S + 1, exp=NOW_S + 1),
    "lives too long": changed(exp=NOW_S + MAX_LIFETIME_S + 1),
    "lives too long from the past": changed(iat=NOW_S - MAX_LIFETIME_S, exp=NOW_S + 60),
    "wrong issuer": changed(iss="evil"),
    "issuer with a suffix": changed(iss="chatd "),
    "issuer a list": changed(iss=["chatd"]),
    "wrong audience": changed(aud="other"),
    "audience a part of ours": changed(aud="chat"),
    "audiences without ours": changed(aud=["a", "b"]),
    "audience an object": changed(aud={"chatd": 1}),
    "empty sub": changed(sub=""),
    "sub a number": changed(sub=7),
    "sub a path": changed(sub="../etc"),
    "sub with a space": changed(sub="dr teste"),
    "sub with a line end": changed(sub="dr.teste\n"),
    "sub with a Cyrillic letter": changed(sub="dr.t\u0435ste"),
    "sub too long": changed(sub="x" * 129),
    "empty jti": changed(jti=""),
    "jti a number": changed(jti=1),
    "departments one string": changed(departments="cardiology"),
    "departments an object": changed(departments={"cardiology": True}),
    "departments with a number": changed(departments=[1]),
    "departments with a wildcard": changed(departments=["*"]),
    "departments with an empty one": changed(departments=[""]),
    "departments too many": changed(departments=[f"d{n}" for n in range(65)]),
    "roles one string": changed(roles="physician"),
    "name empty": changed(name=""),
    "name with a terminal escape": changed(name="Dr.\x1b[2J"),
    "name that runs backwards": changed(name="Dr. \u202eetset"),
    "name a list": changed(name=["Dr. Teste"]),
    "device a path": changed(device="../d"),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_verify_refuses_bad_token(token: str) -> None:
    """Every kind of bad token is ``unauthorized``, and the error repeats nothing of it."""
    with pytest.raises(TokenError) as error:
        VERIFIER.verify(token, now=NOW)
    assert error.value.code == ErrorCode.UNAUTHORIZED
    assert error.value.__cause__ is None
    assert error.value.detail in {
        *("size", "form", "header", "typ", "kid", "alg", "signature", "claims"),
        *("iss", "aud", "iat", "nbf", "exp", "name"),
    }


def test_bad_tokens_are_bad_for_their_own_reason() -> None:
    """The helper's unchanged token is good, so each row of the table fails by its one change."""
    assert VERIFIER.verify(GOOD, now=NOW).token_id == "t-1"
    assert len(BAD_TOKENS) >= 90


def test_verify_end_of_life_is_told_apart() -> None:
    """At ``exp`` and after a token is ``token_expired``; a second before it is good; with another fault it is not."""
    token = changed(exp=NOW_S + 60)
    end = NOW + timedelta(seconds=60)
    assert VERIFIER.verify(token, now=end - timedelta(seconds=1)).user_id == "dr.teste"
    for now in (end, end + timedelta(days=300)):
        assert code_of(lambda now=now: VERIFIER.verify(token, now=now)) == ErrorCode.TOKEN_EXPIRED  # type: ignore[misc]
    other = changed(exp=NOW_S + 60, aud="other")
    assert code_of(lambda: VERIFIER.verify(other, now=end)) == ErrorCode.UNAUTHORIZED


@given(st.text(max_size=300))
def test_verify_any_text_is_refused_cleanly(text: str) -> None:
    """Any text is a TokenError and never another exception."""
    assert code_of(lambda: VERIFIER.verify(text, now=NOW)) == ErrorCode.UNAUTHORIZED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "device"]), json_values, min_size=1, max_size=3))
def test_verify_any_claims_give_a_sound_principal_or_an_error(claims: dict[str, object]) -> None:
    """Whatever a key holder signs, a principal has an id, a bounded life and lists of ids, or there is none."""
    token = signed(CLAIMS | claims)
    try:
        principal = VERIFIER.verify(token, now=NOW)
    except TokenError:
        return
    assert principal.user_id
    assert "\n" not in principal.user_id
    assert NOW_S < principal.expires_at_s <= NOW_S + MAX_LIFETIME_S + 5
    assert all(isinstance(each, str) and each for each in principal.departments + principal.roles)


@given(st.integers(0, len(GOOD) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_verify_any_changed_character_is_refused(position: int, character: str) -> None:
    """A token with one character changed is refused, except where base64 drops the changed bits."""
    token = GOOD[:position] + character + GOOD[position + 1 :]
    parts, changed_parts = GOOD.split("."), token.split(".")
    if len(changed_parts) == 3 and parts[:2] == changed_parts[:2]:
        try:
            if base64.urlsafe_b64decode(changed_parts[2] + "=") == base64.urlsafe_b64decode(parts[2] + "="):
                return
        except ValueError:
            pass
    if token != GOOD:
        assert code_of(lambda: VERIFIER.verify(token, now=NOW)) == ErrorCode.UNAUTHORIZED


# --- public keys ---


@pytest.mark.parametrize(("key", "algorithm"), [(EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
def test_verify_with_a_public_key_file(tmp_path: Path, key: Any, algorithm: str) -> None:
    """A PEM file's key verifies tokens of its own algorithm only, whatever id the issuer gave it."""
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem(key))
    verifier = TokenVerifier(TokenConfig(public_key_file=path))
    for headers in ({}, {"kid": "2026-01"}):
        token = jwt.encode(CLAIMS, key, algorithm=algorithm, headers=headers)
        assert verifier.verify(token, now=NOW).user_id == "dr.teste"
    # The classic confusion: the public key's text taken as an HS256 secret.
    confused = signed(key=public_pem(key))
    assert code_of(lambda: verifier.verify(confused, now=NOW)) == ErrorCode.UNAUTHORIZED
    for other, its in ((ec.generate_private_key(ec.SECP256R1()), "ES256"), (ED_KEY, "EdDSA"), (EC_KEY, "ES256")):
        if other is not key:
            foreign = jwt.encode(CLAIMS, other, algorithm=its)
            assert code_of(lambda foreign=foreign: verifier.verify(foreign, now=NOW)) == ErrorCode.UNAUTHORIZED  # type: ignore[misc]
    assert code_of(lambda: verifier.verify(GOOD, now=NOW)) == ErrorCode.UNAUTHORIZED


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


BAD_PEMS = {
    "empty": b"",
    "text": b"hello",
    "private": private_pem(EC_KEY),
    "rsa": public_pem(rsa.generate_private_key(65537, 2048)),
    "other curve": public_pem(ec.generate_private_key(ec.SECP384R1())),
    "too long": b"x" * 300_000,
}


@pytest.mark.parametrize("content", BAD_PEMS.values(), ids=BAD_PEMS.keys())
def test_public_key_file_that_cannot_be_used_is_refused_at_start(tmp_path: Path, content: bytes) -> None:
    """A file without one usable public key stops the start."""
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(TokenConfigError):
        TokenVerifier(TokenConfig(public_key_file=path))


def test_missing_key_file_is_refused_at_start(tmp_path: Path) -> None:
    """No file is an error that names the file."""
    for config in (
        TokenConfig(public_key_file=tmp_path / "none.pem"),
        TokenConfig(jwks_file=tmp_path / "none.json"),
    ):
        with pytest.raises(TokenConfigError, match="none"):
            TokenVerifier(config)


def test_jwks_selects_the_key_by_its_id(tmp_path: Path) -> None:
    """Each key of a set verifies tokens that name it; a token without a name, or with another's, is refused."""
    path = write_jwks(
        tmp_path / "jwks.json",
        jwk(EC_KEY, "k1"),
        jwk(ED_KEY, "k2", alg="EdDSA"),
        {"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB"},
        {"kty": "oct", "kid": "o", "k": b64(SECRET)},
    )
    verifier = TokenVerifier(TokenConfig(jwks_file=path))
    for key, algorithm, kid in ((EC_KEY, "ES256", "k1"), (ED_KEY, "EdDSA", "k2")):
        token = jwt.encode(CLAIMS, key, algorithm=algorithm, headers={"kid": kid})
        assert verifier.verify(token, now=NOW).user_id == "dr.teste"
    stranger = ec.generate_private_key(ec.SECP256R1())
    for token in (
        jwt.encode(CLAIMS, EC_KEY, algorithm="ES256"),
        jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k2"}),
        jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k9"}),
        jwt.encode(CLAIMS, stranger, algorithm="ES256", headers={"kid": "k1"}),
        with_header(kid="o"),
        with_header(kid="k1"),
        with_header(kid="demo"),
    ):
        assert code_of(lambda token=token: verifier.verify(token, now=NOW)) == ErrorCode.UNAUTHORIZED  # type: ignore[misc]


BAD_JWKS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "no keys": b'{"keys":[]}',
    "keys an object": b'{"keys":{}}',
    "keys of numbers": b'{"keys":[1]}',
    "no kid": json.dumps({"keys": [jwk(EC_KEY, "a") | {"kid": None}]}).encode(),
    "odd kid": json.dumps({"keys": [jwk(EC_KEY, "a/../b")]}).encode(),
    "same kid": json.dumps({"keys": [jwk(EC_KEY, "a"), jwk(ED_KEY, "a")]}).encode(),
    "alg of another": json.dumps({"keys": [jwk(EC_KEY, "a", alg="HS256")]}).encode(),
    "for encryption": json.dumps({"keys": [jwk(EC_KEY, "a", use="enc")]}).encode(),
    "private": json.dumps({"keys": [jwk(EC_KEY, "a", d="AAAA")]}).encode(),
    "point not on the curve": json.dumps({"keys": [jwk(EC_KEY, "a", x=b64(b"1" * 32))]}).encode(),
    "without x": json.dumps(
        {"keys": [{name: value for name, value in jwk(ED_KEY, "a").items() if name != "x"}]}
    ).encode(),
}


@pytest.mark.parametrize("content", BAD_JWKS.values(), ids=BAD_JWKS.keys())
def test_jwks_that_cannot_be_used_is_refused_at_start(tmp_path: Path, content: bytes) -> None:
    """A set without usable keys, or with a dangerous one, stops the start."""
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    with pytest.raises(TokenConfigError):
        TokenVerifier(TokenConfig(jwks_file=path))


def test_jwks_rotation_is_seen_after_thirty_seconds(tmp_path: Path) -> None:
    """A swapped key file is read when 30 s have passed: the new key is good then, and the removed one is not."""
    path = write_jwks(tmp_path / "jwks.json", jwk(EC_KEY, "k1"))
    verifier = TokenVerifier(TokenConfig(jwks_file=path))
    old = jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k1"})
    new = jwt.encode(CLAIMS, ED_KEY, algorithm="EdDSA", headers={"kid": "k2"})
    verifier.verify(old, now=NOW)
    write_jwks(path, jwk(ED_KEY, "k2"), mtime_s=NOW_S + 1)
    soon, later = NOW + timedelta(seconds=29), NOW + timedelta(seconds=30)
    verifier.verify(old, now=soon)
    assert code_of(lambda: verifier.verify(new, now=soon)) == ErrorCode.UNAUTHORIZED
    verifier.verify(new, now=later)
    assert code_of(lambda: verifier.verify(old, now=later)) == ErrorCode.UNAUTHORIZED


def test_jwks_unknown_key_ids_cause_no_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tokens with unknown key ids look at the file once in 30 s."""
    path = write_jwks(tmp_path / "jwks.json", jwk(EC_KEY, "k1"))
    verifier = TokenVerifier(TokenConfig(jwks_file=path))
    token = jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k9"})
    looks = 0
    stat = type(path).stat

    def counted(self: Path, **options: Any) -> os.stat_result:
        nonlocal looks
        looks += self == path
        return stat(self, **options)

    monkeypatch.setattr(type(path), "stat", counted)
    for number in range(1000):
        now = NOW + timedelta(seconds=number * 0.059)
        assert code_of(lambda now=now: verifier.verify(token, now=now)) == ErrorCode.UNAUTHORIZED  # type: ignore[misc]
    assert looks == 2


def test_jwks_that_breaks_while_running_keeps_the_last_good_keys(tmp_path: Path) -> None:
    """A half-written or missing file leaves the keys in use and says so; a mended one is read again."""
    path = write_jwks(tmp_path / "jwks.json", jwk(EC_KEY, "k1"))
    verifier = TokenVerifier(TokenConfig(jwks_file=path))
    token = jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k1"})
    verifier.verify(token, now=NOW)
    assert verifier.keys_error is None
    path.write_text('{"keys": [')
    verifier.verify(token, now=NOW + timedelta(seconds=30))
    assert verifier.keys_error == "not a JSON Web Key Set"
    path.unlink()
    verifier.verify(token, now=NOW + timedelta(seconds=60))
    assert verifier.keys_error
    write_jwks(path, jwk(ED_KEY, "k2"), mtime_s=NOW_S + 90)
    mended = NOW + timedelta(seconds=90)
    assert code_of(lambda: verifier.verify(token, now=mended)) == ErrorCode.UNAUTHORIZED
    assert verifier.keys_error is None


def test_jwks_is_looked_at_when_the_clock_was_set_back(tmp_path: Path) -> None:
    """A clock two hours back does not stop the key file from being read."""
    path = write_jwks(tmp_path / "jwks.json", jwk(EC_KEY, "k1"))
    verifier = TokenVerifier(TokenConfig(jwks_file=path))
    verifier.verify(jwt.encode(CLAIMS, EC_KEY, algorithm="ES256", headers={"kid": "k1"}), now=NOW)
    write_jwks(path, jwk(ED_KEY, "k2"), mtime_s=NOW_S + 1)
    back = NOW - timedelta(hours=2)
    claims = CLAIMS | {"iat": NOW_S - 7200, "exp": NOW_S}
    token = jwt.encode(claims, ED_KEY, algorithm="EdDSA", headers={"kid": "k2"})
    assert verifier.verify(token, now=back).user_id == "dr.teste"


# --- configuration, minting, paths ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"secret": b"short"},
        {"secret": SECRET, "issuer": ""},
        {"secret": SECRET, "audience": ""},
        {"secret": SECRET, "max_lifetime_s": 0},
        {"secret": SECRET, "max_lifetime_s": MAX_LIFETIME_S + 1},
        {"secret": SECRET, "reload_s": 0},
        {"secret": SECRET, "leeway_s": -1},
    ],
)
def test_config_contradictions_are_refused(options: dict[str, Any]) -> None:
    """No key, a short secret, or senseless limits are refused before anything is served."""
    with pytest.raises(TokenConfigError):
        TokenConfig(**options)


def test_config_takes_one_kind_of_key(tmp_path: Path) -> None:
    """The demo's secret beside a real key file is refused: it would let anybody in."""
    with pytest.raises(TokenConfigError):
        TokenConfig(secret=SECRET, jwks_file=tmp_path / "jwks.json")


def mint_one(**changes: Any) -> str:
    options: dict[str, Any] = {
        "user_id": "dr.teste",
        "departments": ["cardiology", "icu"],
        "roles": ["physician"],
        "name": "Dr. Teste",
        "ttl_s": 600,
        "now": NOW,
    }
    return mint(SECRET, **(options | changes))


def test_mint_makes_what_verify_accepts() -> None:
    """A minted token is good until its end, and each has an id of its own."""
    first = VERIFIER.verify(mint_one(), now=NOW)
    second = VERIFIER.verify(mint_one(device="d-1", name=""), now=NOW)
    assert (first.user_id, first.departments, first.expires_at_s) == (
        "dr.teste",
        ("cardiology", "icu"),
        NOW_S + 600,
    )
    assert first.token_id != second.token_id
    assert (second.device, second.name) == ("d-1", "dr.teste")
    end = NOW + timedelta(seconds=600)
    assert code_of(lambda: VERIFIER.verify(mint_one(), now=end)) == ErrorCode.TOKEN_EXPIRED


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl_s": 0},
        {"ttl_s": MAX_LIFETIME_S + 1},
        {"user_id": ""},
        {"user_id": "dr teste"},
        {"departments": ["car/diology"]},
        {"roles": [""]},
        {"name": "x\n"},
        {"device": "a b"},
        {"departments": [f"{'d' * 100}{n}" for n in range(60)]},
    ],
)
def test_mint_refuses_what_verify_would(changes: dict[str, Any]) -> None:
    """``mint`` makes no token that would be refused."""
    with pytest.raises(ValueError, match=r".+"):
        mint_one(**changes)


def test_mint_refuses_a_short_secret() -> None:
    """A secret under 32 bytes signs nothing."""
    with pytest.raises(ValueError, match="32 bytes"):
        mint(b"short", user_id="a", departments=["b"], roles=[], ttl_s=60, now=NOW)


def test_check_path_must_equal_the_claims() -> None:
    """The token's user and one of its departments pass; everything else is ``forbidden``."""
    principal = VERIFIER.verify(mint_one(), now=NOW)
    check_path(principal, "cardiology", "dr.teste")
    check_path(principal, "icu", "dr.teste")
    for department, user_id in (
        ("surgery", "dr.teste"),
        ("cardiology", "dr.other"),
        ("Cardiology", "dr.teste"),
        ("cardiology ", "dr.teste"),
        ("", "dr.teste"),
        ("cardiology", ""),
    ):
        assert code_of(lambda d=department, u=user_id: check_path(principal, d, u)) == ErrorCode.FORBIDDEN  # type: ignore[misc]


def test_token_error_is_told_as_a_frame() -> None:
    """A TokenError is a RemoteProtocolError, so the one table of errors turns it into a frame."""
    assert issubclass(TokenError, RemoteProtocolError)
