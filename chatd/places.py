"""Where an installation keeps its things: one data directory, the keys in it, the Redis and the ledger it joins."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path

import msgspec

from chatd import wiping
from chatd.clock import Clock
from chatd.gateway.auth import TokenConfig, TokenVerifier
from chatd.keys import KeySource, LiveKeys, source_of
from chatd.settings import Engine, Settings, SettingsError
from context.library import Library
from context.seal import KeyRing

#: Bytes of the demo's HS256 key: as long as its hash. Source: RFC 7518, section 3.2.
_JWT_SECRET_BYTES = 32


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a running ``chatd up`` tells others on the same data directory; no secrets are in it."""

    pid: int
    redis_url: str
    ledger_url: str
    demo: bool
    host: str
    port: int
    started_at: datetime | None = None
    engine: Engine = "none"


class Places:
    """The paths and addresses of one installation. Making one touches nothing; each method says what it creates."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data = settings.data_path
        self.run_file = self.data / "run.json"
        running = self.running()
        self.redis_url = settings.redis_url or (running.redis_url if running else "")
        self.ledger_url = (
            settings.ledger_url
            or (running.ledger_url if running else "")
            or f"sqlite:///{self.data / 'ledger.sqlite3'}"
        )

    def prepare(self) -> None:
        """Make the data directory, for its owner alone; an existing one keeps its mode."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.data / "keys").mkdir(exist_ok=True, mode=0o700)

    def running(self) -> RunFile | None:
        """The ``chatd up`` on this directory, if one is alive."""
        try:
            run = msgspec.json.decode(self.run_file.read_bytes(), type=RunFile)
            os.kill(run.pid, 0)
        except (OSError, msgspec.DecodeError, ProcessLookupError):
            return None
        return run

    def write_run_file(self, run: RunFile) -> None:
        """Replace the run file at once, so that nobody reads half of it."""
        beside = self.run_file.with_suffix(f".{run.pid}")
        beside.write_bytes(msgspec.json.encode(run))
        beside.replace(self.run_file)

    def environment(self) -> dict[str, str]:
        """The settings that all processes of one machine must share, for the environment of those that it starts."""
        return {
            "CHATD_DATA_DIR": str(self.data),
            "CHATD_ENGINE": self.settings.engine,
            "CHATD_MODEL": self.settings.model,
            "CHATD_ENGINE_URL": self.settings.engine_url,
            "CHATD_ENGINE_SLOTS": str(self.settings.engine_slots),
            "CHATD_WIPE_MEMORY": str(self.settings.wipe_memory).lower(),
            **(wiping.variables(os.environ) if self.settings.wipe_memory else {}),
        }

    @property
    def key_source(self) -> KeySource:
        """Where the sealing keys are, by the settings."""
        return source_of(self.settings)

    def key_ring(self) -> KeyRing:
        """The sealing keys: from settings, a file, a credential, the keychain, else from the data directory, made there
        when absent. Raises KeyRingError, OSError."""
        source = self.key_source
        if source.is_own:
            self.prepare()
        return source.load(create=True)

    def live_keys(self) -> LiveKeys:
        """The same for a process that lives long: new keys are taken while it runs. Raises KeyRingError, OSError."""
        source = self.key_source
        if source.is_own:
            self.prepare()
        return LiveKeys(source)

    def register(self, name: str) -> Path:
        """This machine's copy of what all gateways know; it is sealed."""
        return self.data / "registers" / f"{name}.json"

    def library(self) -> Library:
        """The hospital's own protocol pages if it has named a folder, else those that chatd comes with.

        Raises:
            LibraryError: a page is not complete or contradicts another; the text names file and field.
        """
        folder = self.settings.protocols_dir
        return Library.load(Path(folder)) if folder else Library.load()

    def jwt_secret(self) -> bytes:
        """The demo's HS256 key, made when absent; two processes that make it at once agree on one.

        Raises:
            SettingsError: the file is not a key, or others can read it.
        """
        path = Path(self.settings.jwt_key_file) if self.settings.jwt_key_file else self.data / "keys" / "jwt.key"
        if not path.exists() and not self.settings.jwt_key_file:
            self.prepare()
            beside = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(_JWT_SECRET_BYTES))
            try:
                os.link(beside, path)
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{path} can be read by others; run chmod 600")
        secret = path.read_text().strip().encode()
        if len(secret) < _JWT_SECRET_BYTES:
            raise SettingsError(f"{path} is shorter than {_JWT_SECRET_BYTES} bytes")
        return secret

    def token_verifier(self, clock: Clock | None = None) -> TokenVerifier:
        """Checks tokens by the hospital's public keys when set, else by the demo's key."""
        settings = self.settings
        if settings.jwt_jwks_url:
            self.prepare()
        return TokenVerifier(
            TokenConfig(
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                max_lifetime_s=settings.jwt_max_ttl_s,
                secret=b"" if settings.has_provider else self.jwt_secret(),
                public_key_file=_path(settings.jwt_public_key_file),
                jwks_file=_path(settings.jwt_jwks_file),
                jwks_url=settings.jwt_jwks_url,
                jwks_ca_file=_path(settings.jwt_jwks_ca_file),
                jwks_cache=self.data / "keys" / "provider.jwks" if settings.jwt_jwks_url else None,
                jwks_stale_s=settings.jwt_jwks_stale_s,
                algorithms=settings.algorithms,
                claims_file=_path(settings.jwt_claims_file),
            ),
            clock,
        )


def _path(setting: str) -> Path | None:
    return Path(setting) if setting else None
