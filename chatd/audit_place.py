"""Where the audit of an installation lies: its seeds, its file for bad days, its checkpoints; by the settings."""

from __future__ import annotations

from pathlib import Path

from chatd.audit.service import Audit
from chatd.audit.sinks import SYSLOG_PORT, FileSink, Sink, SyslogSink, tls_context
from chatd.audit.spool import Spool
from chatd.clock import Clock
from chatd.ledger import Ledger
from chatd.ledger.audit_rows import ChainKeeper
from chatd.places import Places
from chatd.settings import SettingsError
from context.seal import Sealer


def keeper_of(places: Places, sealer: Sealer) -> ChainKeeper:
    """The chain's keys on this machine; seeds lie beside the other keys."""
    return ChainKeeper(sealer, places.data / "keys")


def checkpoint_file(places: Places) -> Path:
    """Where this machine's gateways put checkpoints; it proves more on another mount."""
    return Path(places.settings.audit_checkpoint_file or places.data / "audit.checkpoints")


def audit_of(places: Places, sealer: Sealer, ledger: Ledger, *, clock: Clock, node_id: str) -> Audit:
    """The audit of one process, by its settings.

    Raises:
        SettingsError: a syslog server or its certificates that cannot be used.
    """
    settings = places.settings
    sinks: list[Sink] = [FileSink(checkpoint_file(places))]
    if settings.audit_syslog:
        host, _, port = settings.audit_syslog.rpartition(":") if ":" in settings.audit_syslog else ("", "", "")
        try:
            context = tls_context(
                settings.audit_syslog_ca_file, settings.audit_syslog_cert_file, settings.audit_syslog_key_file
            )
            sinks.append(SyslogSink(host or settings.audit_syslog, int(port or SYSLOG_PORT), context))
        except (OSError, ValueError):
            raise SettingsError("CHATD_AUDIT_SYSLOG is HOST or HOST:PORT, with certificates that can be read") from None
    places.prepare()
    return Audit(
        ledger,
        keeper_of(places, sealer),
        Spool(places.data, sealer.derive("audit-spool")),
        clock=clock,
        node_id=node_id,
        pseudonym_key=sealer.derive("patient-pseudonym"),
        sinks=sinks,
        checkpoint_rows=settings.audit_checkpoint_rows,
        checkpoint_s=settings.audit_checkpoint_s,
    )
