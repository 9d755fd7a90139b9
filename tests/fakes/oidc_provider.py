"""A small OpenID provider that speaks real HTTPS: discovery, a key set that rotates, and a token endpoint.

It gives tokens for client credentials (machines), for an authorization code with PKCE (S256) and for a refresh token
(people), as a hospital's provider does. Its people have groups, not chatd's roles. Not for anything but tests: whoever
asks for a code gets one.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlencode

import jwt
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.identity_attacks import public_jwk

START_S: Final = 20.0
#: How the key set answers: well, or in one of the ways in which an address is away.
Mood = Literal["well", "down", "garbage", "huge", "elsewhere", "private"]
PEOPLE: Final[dict[str, dict[str, Any]]] = {
    "u-1": {"preferred_username": "dr.santos.cardio", "name": "Dr. Santos", "groups": ["/medical", "/ward/cardio"]},
    "u-2": {"preferred_username": "nurse.cruz.emergency", "name": "Nurse Cruz", "groups": ["/nursing", "/ward/er"]},
    "u-3": {"preferred_username": "guest.one", "name": "Guest", "groups": ["/visitors", "/ward/cardio"]},
}
CLIENTS: Final = {"lab": ("lab-secret", ["/machines", "/ward/cardio"])}
#: How these groups are told to chatd (``CHATD_JWT_CLAIMS_FILE``).
CLAIM_RULES: Final[dict[str, Any]] = {
    "user": ["preferred_username"],
    "roles": [
        {"claim": ["groups"], "values": {"/medical": ["physician"], "/nursing": ["nurse"], "/machines": ["service"]}}
    ],
    "departments": [{"claim": ["groups"], "values": {"/ward/cardio": ["cardiology"], "/ward/er": ["emergency"]}}],
}


class Provider:
    """The provider's state; ``url`` once it runs. ``key_asks`` counts requests for the key set."""

    def __init__(self, algorithm: Literal["ES256", "EdDSA", "RS256"] = "ES256", ttl_s: float = 600) -> None:
        self.algorithm = algorithm
        self.ttl_s = ttl_s
        self.url = ""
        self.mood: Mood = "well"
        self.key_asks = 0
        self.keys: dict[str, Any] = {}
        self.signing = ""
        self._codes: dict[str, tuple[str, str, str]] = {}
        self._refresh: dict[str, str] = {}
        self.rotate()

    # --- keys ---

    def rotate(self) -> str:
        """Publish a new key and sign with it from now on; the old ones stay published. Returns its id."""
        self.publish()
        self.signing = list(self.keys)[-1]
        return self.signing

    def publish(self) -> str:
        """Publish a key that is not signed with yet, as a provider does ahead of a rotation."""
        kid = f"k-{secrets.token_hex(4)}"
        made: Any
        match self.algorithm:
            case "ES256":
                made = ec.generate_private_key(ec.SECP256R1())
            case "EdDSA":
                made = ed25519.Ed25519PrivateKey.generate()
            case "RS256":
                made = rsa.generate_private_key(65537, 2048)
        self.keys = {**self.keys, kid: made}
        return kid

    def retire(self, kid: str) -> None:
        """Publish a key no longer."""
        self.keys = {name: key for name, key in self.keys.items() if name != kid}

    # --- tokens ---

    def sign(self, claims: dict[str, Any], key: Any = None) -> str:
        """An access token of these claims; the usual ones are added."""
        now = int(time.time())
        whole = {"iss": self.url, "aud": "chatd", "iat": now, "exp": now + self.ttl_s, "jti": secrets.token_hex(8)}
        signer = self.keys[self.signing] if key is None else key
        return jwt.encode({**whole, **claims}, signer, algorithm=self.algorithm, headers={"kid": self.signing})

    def person(self, subject: str, **more: Any) -> str:
        """A person's access token, without the walk through the browser."""
        return self.sign({"sub": subject, **PEOPLE[subject], **more})

    # --- its routes ---

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._discovery),
                Route("/jwks", self._jwks),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    async def _discovery(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/jwks",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "code_challenge_methods_supported": ["S256"],
                "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
                "id_token_signing_alg_values_supported": [self.algorithm],
            }
        )

    async def _jwks(self, _: Request) -> Response:
        self.key_asks += 1
        keys = [public_jwk(key, kid) for kid, key in self.keys.items()]
        match self.mood:
            case "down":
                return Response(status_code=503)
            case "garbage":
                return Response('{"keys": [', media_type="application/json")
            case "huge":
                return JSONResponse({"keys": keys, "more": "x" * 300_000})
            case "elsewhere":
                return RedirectResponse(f"{self.url}/jwks?again")
            case "private":
                return JSONResponse({"keys": [each | {"d": "AAAA"} for each in keys]})
            case "well":
                return JSONResponse({"keys": keys})

    async def _authorize(self, request: Request) -> Response:
        asked = request.query_params
        if asked.get("code_challenge_method") != "S256" or asked.get("login_hint") not in PEOPLE:
            return JSONResponse({"error": "invalid_request"}, 400)
        code = secrets.token_urlsafe(16)
        self._codes[code] = (asked["code_challenge"], asked["login_hint"], asked["redirect_uri"])
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")

    async def _token(self, request: Request) -> Response:
        fields = {name: str(value) for name, value in (await _form(request)).items()}
        match fields.get("grant_type"):
            case "client_credentials":
                client, secret = fields.get("client_id", ""), fields.get("client_secret", "")
                if client not in CLIENTS or not secrets.compare_digest(CLIENTS[client][0], secret):
                    return JSONResponse({"error": "invalid_client"}, 401)
                claims = {"sub": client, "preferred_username": client, "groups": CLIENTS[client][1]}
                return self._granted(self.sign(claims), "")
            case "authorization_code":
                known = self._codes.pop(fields.get("code", ""), None)
                digest = hashlib.sha256(fields.get("code_verifier", "").encode()).digest()
                challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                if known is None or known[0] != challenge or known[2] != fields.get("redirect_uri"):
                    return JSONResponse({"error": "invalid_grant"}, 400)
                return self._granted(self.person(known[1]), known[1])
            case "refresh_token":
                subject = self._refresh.pop(fields.get("refresh_token", ""), None)
                if subject is None:
                    return JSONResponse({"error": "invalid_grant"}, 400)
                return self._granted(self.person(subject), subject)
        return JSONResponse({"error": "unsupported_grant_type"}, 400)

    def _granted(self, token: str, subject: str) -> Response:
        body = {"access_token": token, "token_type": "Bearer", "expires_in": self.ttl_s}
        if subject:
            body["refresh_token"] = secrets.token_urlsafe(16)
            self._refresh[str(body["refresh_token"])] = subject
        return JSONResponse(body, headers={"cache-control": "no-store"})


async def _form(request: Request) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl((await request.body()).decode()))


def make_authority(folder: Path) -> tuple[Path, Path, Path]:
    """An authority and a certificate of it for 127.0.0.1: the authority's file, the certificate's, its key's."""
    now = dt.datetime.now(dt.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = builder("Test authority", "Test authority", ca_key)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = {"digital_signature": False, "content_commitment": False, "key_encipherment": False}
    usage |= {"data_encipherment": False, "key_agreement": False, "crl_sign": True, "key_cert_sign": True}
    ca = ca.add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    authority = ca.add_extension(ca_id, critical=False).sign(ca_key, hashes.SHA256())
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = builder("provider", "Test authority", key).add_extension(addresses, critical=False)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    certificate = leaf.add_extension(issuer_id, critical=False).sign(ca_key, hashes.SHA256())
    paths = (folder / "ca.pem", folder / "provider.pem", folder / "provider.key")
    paths[0].write_bytes(authority.public_bytes(Encoding.PEM))
    paths[1].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


@contextlib.contextmanager
def running(provider: Provider, folder: Path) -> Iterator[Path]:
    """Serve it on 127.0.0.1 over TLS in a thread of its own; gives the authority's file."""
    ca, certificate, key = make_authority(folder)
    config = uvicorn.Config(
        provider.app(),
        host="127.0.0.1",
        port=0,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        log_config=None,
        ws="none",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the provider did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    provider.url = f"https://127.0.0.1:{port}"
    try:
        yield ca
    finally:
        server.should_exit = True
        thread.join(START_S)


def rules_file(folder: Path) -> Path:
    """The mapping of this provider's groups, as a file."""
    path = folder / "claims.json"
    path.write_text(json.dumps(CLAIM_RULES), "utf-8")
    return path
