"""Makes the tokens of ``tests/chatd/identity_attacks.jsonl``: each line is a good token with something done to it.

``make`` holds any of: ``header`` and ``claims`` (fields to set; null takes one out; "@+60" is a time from now, "*4096"
so many letters), ``kid`` (which key's id stands in the header), ``key`` (who signs: es, ed, rsa, a stranger to all of
them, nobody, or HMAC with a text that everybody can read), ``alg`` (what the signer believes to use), ``payload`` (text
in place of claims), ``then`` (what is done to the finished token).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FILE: Final = Path(__file__).parent / "chatd" / "identity_attacks.jsonl"
ATTACKS: Final[list[dict[str, Any]]] = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
TOKEN_ATTACKS: Final = {each["name"]: each for each in ATTACKS if "make" in each}
ORIGIN_ATTACKS: Final = {each["name"]: each for each in ATTACKS if "origin" in each}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Forge:
    """A provider's keys in the hands of somebody who knows how tokens are made."""

    def __init__(
        self,
        *,
        user_id: str = "dr.teste",
        departments: tuple[str, ...] = ("cardiology",),
        issuer: str = "chatd",
        audience: str = "chatd",
    ) -> None:
        self.es = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.rsa = rsa.generate_private_key(65537, 2048)
        self._stranger = ec.generate_private_key(ec.SECP256R1())
        self._strange_rsa = rsa.generate_private_key(65537, 2048)
        self._claims: dict[str, Any] = {
            "iss": issuer,
            "aud": audience,
            "sub": user_id,
            "jti": "t-1",
            "iat": "@+0",
            "exp": "@+3600",
            "departments": list(departments),
            "roles": ["physician"],
            "name": "Dr. Teste",
        }

    def jwks(self) -> bytes:
        """The key set that a provider with these keys publishes."""
        ids = {"k-es": self.es, "k-ed": self.ed, "k-rsa": self.rsa}
        return json.dumps({"keys": [public_jwk(key, kid) for kid, key in ids.items()]}).encode()

    def make(self, how: dict[str, Any], now_s: int) -> str:
        """The token of one line."""
        signer = how.get("key", "es")
        alg = how.get("alg", {"ed": "EdDSA", "rsa": "RS256", "nobody": "none"}.get(signer, "ES256"))
        kid = how.get("kid", {"ed": "k-ed", "rsa": "k-rsa", "rsa-stranger": "k-rsa"}.get(signer, "k-es"))
        header = _edited({"alg": alg, "typ": "JWT", "kid": kid}, how.get("header", {}), now_s)
        claims = _edited(self._claims, how.get("claims", {}), now_s)
        payload = how["payload"] if "payload" in how else json.dumps(claims)
        header_text = how["raw_header"] if "raw_header" in how else json.dumps(header)
        body = f"{b64(header_text.encode())}.{b64(payload.encode())}"
        token = f"{body}.{b64(self._signature(signer, body.encode()))}"
        for step in how.get("then", ()):
            token = self._done(step, token, now_s)
        return token

    def _signature(self, signer: str, body: bytes) -> bytes:
        match signer:
            case "nobody":
                return b""
            case "es":
                return _raw_es(self.es, body)
            case "es-der":
                return self.es.sign(body, ec.ECDSA(SHA256()))
            case "es-zeros":
                return bytes(64)
            case "stranger":
                return _raw_es(self._stranger, body)
            case "ed":
                return self.ed.sign(body)
            case "rsa":
                return self.rsa.sign(body, padding.PKCS1v15(), SHA256())
            case "rsa-pss":
                return self.rsa.sign(body, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
            case "rsa-stranger":
                return self._strange_rsa.sign(body, padding.PKCS1v15(), SHA256())
        secret = {
            "hmac-empty": b"",
            "hmac-pem": self._pem(self.es),
            "hmac-rsa-pem": self._pem(self.rsa),
            "hmac-jwk": json.dumps(public_jwk(self.es, "k-es")).encode(),
            "hmac-kid": b"k-es",
        }[signer]
        return hmac.digest(secret, body, hashlib.sha256)

    @staticmethod
    def _pem(key: Any) -> bytes:
        return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def _done(self, step: dict[str, Any], token: str, now_s: int) -> str:
        header, payload, signature = token.split(".")[:3]
        match step["do"]:
            case "cut":
                return token[: -step["by"]]
            case "append":
                return token + str(step["text"])
            case "prepend":
                return str(step["text"]) + token
            case "claims":  # edited after signing
                claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
                return f"{header}.{b64(json.dumps(_edited(claims, step['set'], now_s)).encode())}.{signature}"
            case "header":
                fields = json.loads(base64.urlsafe_b64decode(header + "=="))
                return f"{b64(json.dumps(_edited(fields, step['set'], now_s)).encode())}.{payload}.{signature}"
            case "own-jwk":  # brings the key along that it is signed with
                fields = json.loads(base64.urlsafe_b64decode(header + "=="))
                fields["jwk"] = public_jwk(self._stranger, "k-es")
                body = f"{b64(json.dumps(fields).encode())}.{payload}"
                return f"{body}.{b64(_raw_es(self._stranger, body.encode()))}"
            case "drop-signature":
                return f"{header}.{payload}."
            case "two-parts":
                return f"{header}.{payload}"
            case "swap-signature":  # that of another good token
                other = self.make({"claims": {"jti": "t-other"}}, now_s)
                return f"{header}.{payload}.{other.split('.')[2]}"
            case "pad":
                return f"{header}=.{payload}.{signature}"
            case "json":  # RFC 7515, section 7.2: the other serialisation
                return json.dumps({"protected": header, "payload": payload, "signature": signature})
        raise AssertionError(step)


def public_jwk(key: Any, kid: str) -> dict[str, Any]:
    """A private key's public half as an entry of a key set."""
    kind: dict[str, Any] = {
        "EllipticCurve": jwt.algorithms.ECAlgorithm,
        "Ed25519": jwt.algorithms.OKPAlgorithm,
        "RSA": jwt.algorithms.RSAAlgorithm,
    }
    name = next(name for name in kind if name in type(key.public_key()).__name__.replace("EC", "EllipticCurve"))
    return {**kind[name].to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


def _raw_es(key: ec.EllipticCurvePrivateKey, body: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(body, ec.ECDSA(SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def _edited(base: dict[str, Any], changes: dict[str, Any], now_s: int) -> dict[str, Any]:
    merged = {**base, **changes}
    return {name: _meant(value, now_s) for name, value in merged.items() if value is not None}


def _meant(value: Any, now_s: int) -> Any:
    if isinstance(value, str) and re.fullmatch(r"@[+-]\d+", value):
        return now_s + int(value[1:])
    if isinstance(value, str) and re.fullmatch(r"\*\d+", value):
        return "x" * int(value[1:])
    return value
