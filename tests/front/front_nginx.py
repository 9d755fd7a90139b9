"""A real nginx with the project's own configuration, a made authority, and gateways behind it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parents[2]
NGINX_DIR = ROOT / "deploy" / "nginx"
NAME = "chat.hospital.test"
START_S = 20.0


def nginx_path() -> str:
    """The nginx to run; skips without one, fails in CI."""
    found = shutil.which("nginx") or next((p for p in ("/usr/sbin/nginx",) if Path(p).exists()), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine")
        pytest.skip("no nginx on this machine")
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Authority:
    """An authority of the test's own, as a hospital has one, and a server's certificate from it (P-256)."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hospital test authority")])
        ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
        usage = {
            "content_commitment": False,
            "key_encipherment": False,
            "data_encipherment": False,
            "key_agreement": False,
            "encipher_only": False,
            "decipher_only": False,
        }
        ca = (
            x509.CertificateBuilder()
            .subject_name(ca_name)
            .issuer_name(ca_name)
            .public_key(ca_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=180))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), critical=True
            )
            .add_extension(ca_id, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]))
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            # Below 90 in all, as Mozilla's profile asks for.
            .not_valid_after(now + timedelta(days=88))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage), critical=True
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.ca = folder / "ca.pem"
        self.certificate = folder / "chat.pem"
        self.key = folder / "chat.key"
        self.ca.write_bytes(ca.public_bytes(pem))
        self.certificate.write_bytes(leaf.public_bytes(pem))
        self.key.touch(mode=0o600)
        self.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        #: By which a browser is told to trust this one key.
        self.spki = base64.b64encode(hashlib.sha256(spki).digest()).decode()

    def context(self) -> ssl.SSLContext:
        """What a phone of the hospital has: it trusts this authority and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        return context


class Front:
    """An nginx on a folder of its own; ``gateways`` are names and addresses as in site.toml."""

    def __init__(self, gateways: dict[str, str], departments: dict[str, list[str]] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="front-"))
        for name in ("logs", "run", "conf"):
            (self.folder / name).mkdir()
        self.authority = Authority(self.folder)
        self.port, self.plain_port = free_port(), free_port()
        self.site = self.folder / "site.toml"
        self.maintenance = self.folder / "maintenance"
        self.gateways = gateways
        self.departments = departments or {}
        self.write_site()
        self.nginx = nginx_path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.host}"

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    def write_site(self, **other: Any) -> None:
        """Write site.toml for this folder; ``other`` replaces keys."""
        site = {
            "authority": self.host,
            "listen": [f"127.0.0.1:{self.port}"],
            "plain": [f"127.0.0.1:{self.plain_port}"],
            "certificate": str(self.authority.certificate),
            "key": str(self.authority.key),
            "origins": [self.url],
            "monitoring": ["192.0.2.1"],
            "phones_per_address": 200,
            "open_files": min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
            "maintenance_file": str(self.maintenance),
            "logs": str(self.folder / "logs"),
            "run": str(self.folder / "run"),
            # As root the workers would change to an account that may not enter the tests' folders.
            "user": "root" if os.geteuid() == 0 else "",
            **other,
        }
        lines = [f"{key} = {value!r}".replace("'", '"') for key, value in site.items()]
        lines += ["[gateways]", *(f'{name} = "{address}"' for name, address in self.gateways.items())]
        lines += ["[departments]", *(f"{name} = {own!r}".replace("'", '"') for name, own in self.departments.items())]
        self.site.write_text("\n".join(lines) + "\n")

    def render(self, *down: str) -> None:
        """Run render.py as an operator does."""
        options = [word for name in down for word in ("--down", name)]
        subprocess.run(
            [sys.executable, NGINX_DIR / "render.py", self.site, self.conf, *options], check=True, capture_output=True
        )

    def command(self, *arguments: str) -> list[str]:
        """nginx on this folder."""
        where = ["-p", str(self.folder), "-c", str(self.conf / "nginx.conf"), "-e", str(self.folder / "logs/error.log")]
        return [self.nginx, *where, *arguments]

    def check(self) -> str:
        """What ``nginx -t`` says; raises where it refuses."""
        done = subprocess.run(self.command("-t"), capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def start(self) -> None:
        """Render, start, and wait until it listens."""
        self.render()
        self._process = subprocess.Popen(
            self.command("-g", "daemon off;"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._await()

    def _await(self) -> None:
        give_up = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > give_up:
                    raise AssertionError((self.folder / "logs" / "error.log").read_text()) from None
                time.sleep(0.02)

    def reload(self) -> None:
        subprocess.run(self.command("-s", "reload"), check=True, capture_output=True)

    def workers(self) -> set[int]:
        """The processes below the master that is running now."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def kill(self) -> None:
        """SIGKILL to master and workers, as a crash of all of it."""
        assert self._process is not None
        workers = self.workers()
        self._process.kill()
        self._process.wait(START_S)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        (self.folder / "run" / "nginx.pid").unlink(missing_ok=True)
        self._process = None

    def restart(self) -> None:
        """Start again after ``kill``, on what is rendered."""
        self._process = subprocess.Popen(
            self.command("-g", "daemon off;"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._await()

    def logs(self) -> str:
        """All that nginx has written."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.folder / "logs").iterdir()))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- bytes ---

    def line(self, context: ssl.SSLContext | None = None, name: str = "localhost") -> ssl.SSLSocket:
        """A TLS connection of one's own, for requests that no library would send."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=START_S)
        return (context or self.authority.context()).wrap_socket(raw, server_hostname=name)

    def exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send these bytes; returns status, headers (names in lower case) and body, or (0, {}, b"") where it is cut."""
        with self.line() as line:
            # nginx may have answered before it has read all.
            with contextlib.suppress(OSError):
                line.sendall(request)
            try:
                answer = http.client.HTTPResponse(line)
                answer.begin()
                return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
            except (OSError, http.client.HTTPException):
                return 0, {}, b""

    def get(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; ``_`` in a header's name stands for ``-``."""
        lines = {"Host": self.host, "Connection": "close", **{n.replace("_", "-"): v for n, v in headers.items()}}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return self.exchange(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
