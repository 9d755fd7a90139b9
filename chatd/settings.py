"""All of chatd's settings: one frozen Struct, each read from ``CHATD_<NAME>``, contradictions refused at start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

Engine = Literal["none", "scripted", "mlx", "vllm"]


#: Under the time that the supervisor gives a gateway to end, with room for closing a phone that does not read.
_MOST_DRAIN_S = 12.0


class SettingsError(ValueError):
    """A setting is unknown, malformed or contradicts another; the text names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one node. Field names are the environment's names in lower case without ``CHATD_``."""

    #: Keys, the feed registry, the SQLite ledger and the run file of ``chatd up`` live here, mode 0700.
    data_dir: str = ".chatd"
    host: str = "127.0.0.1"
    port: int = 8080
    #: A Unix socket for a proxy on the same machine, in place of host and port.
    uds: str = ""
    #: Empty: join the private Redis of the ``chatd up`` on ``data_dir``.
    redis_url: str = ""
    #: Empty: SQLite in ``data_dir``. PostgreSQL by ``postgresql://``.
    ledger_url: str = ""
    engine: Engine = "none"
    #: Folder of the model's files, or for mlx a hub's name of it.
    model: str = ""
    #: Where the vLLM server listens: http://HOST:PORT or unix:/PATH.
    engine_url: str = ""
    #: Loads the demo hospital and serves its sign-in. Never on a real installation.
    demo: bool = False
    #: A folder with the hospital's own approved protocol pages, in place of those that chatd comes with.
    protocols_dir: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # --- keys and tokens ---
    #: Key ring as text ("id:base64" per line) or, better, a file of it; empty: ``data_dir``/keys/seal.keys.
    seal_keys: str = ""
    seal_key_file: str = ""
    #: HS256 demo key, used only when neither a public key file nor a JWKS file is set.
    jwt_key_file: str = ""
    jwt_public_key_file: str = ""
    jwt_jwks_file: str = ""
    jwt_issuer: str = "chatd"
    jwt_audience: str = "chatd"
    #: A doctor's shift; a token that lives longer is refused.
    jwt_max_ttl_s: int = 43_200

    # --- limits ---
    messages_per_minute: int = 10
    #: What was measured to be held by one process; a whole hospital may come back to one gateway.
    max_connections: int = 5_000
    #: The wire's own limit; the server closes with 1009 above it.
    max_frame_bytes: int = 65_536
    max_content_chars: int = 4_000
    #: What one phone may leave unread before it is closed with 4002 and resumes.
    outbox_bytes: int = 1_048_576
    #: Strikes of undecodable frames before close 4507.
    max_strikes: int = 5

    # --- times ---
    hello_timeout_s: float = 5.0
    #: A half-open socket is noticed within interval + timeout.
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 10.0
    session_timeout_s: float = 1_800.0
    #: How long a question's run belongs to a gateway that has stopped renewing; the next one then adopts it.
    run_lease_s: float = 3.0
    #: Lost doorbells and lapsed runs are looked for this often.
    sweep_interval_s: float = 1.0
    #: No single Redis or ledger wait is longer.
    redis_timeout_s: float = 2.0
    ledger_timeout_s: float = 2.0
    #: Closing is spread over this, so that phones do not all come back in one instant.
    drain_spread_s: float = 2.0
    #: How long a draining node waits for running answers.
    drain_timeout_s: float = 8.0
    #: An unconfirmed proposal of a quick action lives this long.
    action_ttl_s: float = 900.0

    # --- alerts ---
    #: A file of the hospital's own escalation policies; what it does not name stays as shipped.
    alert_policies_file: str = ""
    #: The keys of older days are destroyed, and with them the texts of their alerts.
    alert_retention_days: int = 30
    #: What one person may raise; nobody who treats patients meets it. A machine has ten times as many.
    alert_raises_per_minute: int = 120

    # --- the model ---
    #: Answers that one worker writes at once, and how many of these places only "stat" may take.
    engine_slots: int = 20
    engine_reserved_slots: int = 2
    #: An answer is cut here and shown as incomplete.
    answer_max_tokens: int = 700
    #: 0: always the most probable word.
    answer_temperature: float = 0.0
    #: Questions that wait for the model in all, and of one doctor (waiting or being written).
    queue_max_waiting: int = 400
    queue_max_per_doctor: int = 5
    #: A worker without progress for this long loses its answers to another one; it reports more often than that.
    job_lease_s: float = 5.0
    job_beat_s: float = 1.5
    job_attempts: int = 2
    #: A second asker of the same question joins an answer this young.
    same_question_s: float = 60.0
    #: One real token is made this often; without one for ``model_down_s`` the mode is ``facts_only``.
    canary_interval_s: float = 5.0
    model_down_s: float = 12.0
    #: A phone is told when an answer that is being written says nothing for this long.
    silence_s: float = 1.5
    #: An engine that makes no step for this long while it should is killed and started again.
    engine_stall_s: float = 20.0
    #: Memory for finished work on shared beginnings of prompts.
    prefix_cache_bytes: int = 4_294_967_296

    # --- identity ---
    #: Where to fetch the identity provider's key set, and the authority of its certificate; empty: the system's.
    jwt_jwks_url: str = ""
    jwt_jwks_ca_file: str = ""
    #: How long the last fetched keys stay in use while the address is away.
    jwt_jwks_stale_s: float = 86_400.0
    #: What tokens may be signed with, of ES256, EdDSA and RS256; the demo's own key is HS256 whatever stands here.
    jwt_algorithms: str = "ES256,EdDSA"
    #: How the provider's claims become roles and departments; empty: tokens carry ``roles`` and ``departments``.
    jwt_claims_file: str = ""
    #: Origins whose pages may open a socket; empty: the page that this server serves.
    origins: str = ""
    #: A person's second phone waits until somebody approves it; tokens of people must then name their device.
    device_approval: bool = False
    #: How long a record of another department stays open after an emergency access.
    break_glass_s: int = 14_400

    # --- audit ---
    #: Where checkpoints are appended; empty: ``data_dir``/audit.checkpoints, which proves less than another mount.
    audit_checkpoint_file: str = ""
    #: One is made after so many rows, or after so long where there are new ones.
    audit_checkpoint_rows: int = 1_000
    audit_checkpoint_s: float = 60.0
    #: HOST or HOST:PORT of a syslog server over TLS that gets them too.
    audit_syslog: str = ""
    audit_syslog_ca_file: str = ""
    audit_syslog_cert_file: str = ""
    audit_syslog_key_file: str = ""

    # --- bounds ---
    #: Durable frames kept per session; an older resume position gets ``too_far`` and a snapshot.
    session_log_events: int = 512
    #: Prompt budget of a question, also for ``chatd context show``.
    prompt_budget_tokens: int = 6_000
    redis_max_connections: int = 64

    #: What one connection may send before it is read more slowly: frames of any kind, and commands among them.
    frames_per_second: int = 1_000
    commands_per_second: int = 200
    #: Connections of one person in one department with one kind of device; with one more, the oldest is closed.
    #: Wall boards have more room: ``chatd.gateway.seats.BOARDS``.
    connections_per_user: int = 2
    #: Have freed memory overwritten, where the system's C library can; costs a few hundredths of the processor.
    wipe_memory: bool = True

    #: Tests only: kill the process with SIGKILL when it reaches this step for the n-th time ("accept:1").
    fault_kill_at: str = ""

    # --- the installation ---
    #: Name of an entry of the macOS keychain that holds the key ring.
    seal_keychain: str = ""
    #: Start although Redis may put on a disk what it holds, or show it to others; said aloud at each start.
    redis_unsafe: bool = False

    def __post_init__(self) -> None:
        positive = (
            "messages_per_minute",
            "max_connections",
            "max_frame_bytes",
            "max_content_chars",
            "outbox_bytes",
            "max_strikes",
            "hello_timeout_s",
            "ping_interval_s",
            "ping_timeout_s",
            "session_timeout_s",
            "run_lease_s",
            "sweep_interval_s",
            "redis_timeout_s",
            "ledger_timeout_s",
            "action_ttl_s",
            "alert_retention_days",
            "alert_raises_per_minute",
            "audit_checkpoint_rows",
            "audit_checkpoint_s",
            "session_log_events",
            "prompt_budget_tokens",
            "redis_max_connections",
            "jwt_max_ttl_s",
            "jwt_jwks_stale_s",
            "break_glass_s",
            "engine_slots",
            "answer_max_tokens",
            "queue_max_waiting",
            "queue_max_per_doctor",
            "job_lease_s",
            "job_beat_s",
            "job_attempts",
            "same_question_s",
            "canary_interval_s",
            "model_down_s",
            "silence_s",
            "engine_stall_s",
            "prefix_cache_bytes",
            "frames_per_second",
            "commands_per_second",
            "connections_per_user",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise SettingsError(f"CHATD_{name.upper()} must be above 0")
        for name in ("drain_spread_s", "drain_timeout_s", "engine_reserved_slots", "answer_temperature"):
            if getattr(self, name) < 0:
                raise SettingsError(f"CHATD_{name.upper()} must not be negative")
        if not 0 <= self.port <= 65_535:
            raise SettingsError("CHATD_PORT must be between 0 and 65535")
        if self.outbox_bytes < 2 * self.max_frame_bytes:
            raise SettingsError("CHATD_OUTBOX_BYTES must hold at least two frames of CHATD_MAX_FRAME_BYTES")
        if self.engine_reserved_slots >= self.engine_slots:
            raise SettingsError(
                "CHATD_ENGINE_RESERVED_SLOTS must leave at least one of CHATD_ENGINE_SLOTS to the others"
            )
        if self.job_lease_s < 2 * self.job_beat_s:
            raise SettingsError("CHATD_JOB_LEASE_S must be at least twice CHATD_JOB_BEAT_S: one lost beat is no death")
        if self.model_down_s <= self.canary_interval_s:
            raise SettingsError("CHATD_MODEL_DOWN_S must be above CHATD_CANARY_INTERVAL_S")
        if sum(map(bool, (self.seal_keys, self.seal_key_file, self.seal_keychain))) > 1:
            raise SettingsError(
                "only one of CHATD_SEAL_KEYS, CHATD_SEAL_KEY_FILE and CHATD_SEAL_KEYCHAIN may name the keys"
            )
        if self.demo and self.has_provider:
            raise SettingsError(
                "the demo signs people in without a password and excludes a real identity provider: give --no-demo "
                "(CHATD_DEMO=false) or leave out CHATD_JWT_PUBLIC_KEY_FILE, CHATD_JWT_JWKS_FILE and CHATD_JWT_JWKS_URL"
            )
        if self.drain_timeout_s + self.drain_spread_s > _MOST_DRAIN_S:
            raise SettingsError(
                f"CHATD_DRAIN_TIMEOUT_S and CHATD_DRAIN_SPREAD_S together must be at most {_MOST_DRAIN_S:g}: "
                "chatd up waits 15 s for a gateway to end"
            )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().absolute()

    @property
    def has_provider(self) -> bool:
        """Tokens come from the hospital's identity provider and not from the demo's own key."""
        return bool(self.jwt_public_key_file or self.jwt_jwks_file or self.jwt_jwks_url)

    @property
    def algorithms(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.jwt_algorithms.split(","))

    @property
    def allowed_origins(self) -> frozenset[str]:
        """Origins in the form in which a browser sends them."""
        return frozenset(origin.strip().lower().rstrip("/") for origin in self.origins.split(",") if origin.strip())

    @property
    def model_configured(self) -> bool:
        return self.engine != "none"


def _settings_in(environ: Mapping[str, str]) -> dict[str, str]:
    # CHATD_TEST_* and CHATD_CHROMIUM belong to the test suite.
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("CHATD_") and not name.startswith("CHATD_TEST_") and name != "CHATD_CHROMIUM"
    }


def unknown_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """``CHATD_`` names that are no setting: a misspelt limit must be said aloud and not silently ignored."""
    known = {f"CHATD_{name.upper()}" for name in Settings.__struct_fields__}
    return tuple(sorted(_settings_in(environ).keys() - known))


def from_environment(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Settings from ``CHATD_<NAME>``, then ``overrides`` that are not None.

    Raises:
        SettingsError: a value that is not of its type, or a contradiction; the text names the setting and
            never its value (it may be a key).
    """
    known = {f"CHATD_{name.upper()}": name for name in Settings.__struct_fields__}
    values: dict[str, object] = {
        known[variable]: value for variable, value in _settings_in(environ).items() if variable in known
    }
    values.update({name: value for name, value in overrides.items() if value is not None})
    settings: dict[str, object] = {}
    hints = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for name, value in values.items():
        try:
            settings[name] = msgspec.convert(value, hints[name], strict=False)
        except msgspec.ValidationError:
            raise SettingsError(f"CHATD_{name.upper()} has a value of the wrong form") from None
    return Settings(**settings)  # type: ignore[arg-type]
