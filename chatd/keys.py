"""The sealing keys of an installation: where they are, and taking new ones while the process runs.

A source is the text of a setting, a file, a credential of systemd (a file that is there from the start of the service
and never changes) or an entry of the macOS keychain. Files are looked at every few seconds, and at once when a record
names a key that is not known: another process may have taken the new key a moment earlier.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from chatd.logs import error_name
from chatd.settings import Settings
from context.seal import KeyRing, KeyRingError, Sealer

log = structlog.get_logger(__name__)

Kind = Literal["text", "file", "credential", "keychain"]

#: A file's state costs microseconds; a keychain's entry a process of some 50 ms.
_FILE_EVERY_S: Final = 5.0
_KEYCHAIN_EVERY_S: Final = 60.0
#: A record of a key that nobody has, sent again and again, must not become a reading of the file each time.
_ASKED_EVERY_S: Final = 1.0
_KEYCHAIN_WAIT_S: Final = 5.0
#: The file's name in the data directory's ``keys/`` and among a service's credentials.
FILE: Final = "seal.keys"
#: What ``security`` prints of an entry that has more than one line.
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ring is. ``where``: the file's path, the entry's name, or empty for a text."""

    kind: Kind
    where: str = ""
    text: str = ""
    #: It is chatd's own file, made at the first start.
    is_own: bool = False

    def __repr__(self) -> str:
        return f"KeySource({self.kind}, {self.where})"

    @property
    def every_s(self) -> float | None:
        """How often it is worth looking; None: it does not change while the process lives."""
        return {"file": _FILE_EVERY_S, "keychain": _KEYCHAIN_EVERY_S}.get(self.kind)

    def load(self, *, create: bool = False) -> KeyRing:
        """Read the ring. ``create``: make chatd's own file where it is not there; its folder exists.

        Raises:
            KeyRingError: no ring there, or one that others can read. OSError.
        """
        if self.kind == "text":
            return KeyRing.parse(self.text)
        if self.kind == "keychain":
            return KeyRing.parse(from_keychain(self.where))
        return KeyRing.load(Path(self.where), create=create and self.is_own, is_credential=self.kind == "credential")

    def mark(self) -> tuple[int, ...]:
        """Changes when the file is replaced or written; empty for what has no such mark. Raises OSError."""
        if self.kind != "file":
            return ()
        found = Path(self.where).stat()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def source_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> KeySource:
    """The source by the settings: a text, a named file, a keychain's entry, a credential of that name, else chatd's own
    file in the data directory. Touches nothing but the folder of credentials."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    if settings.seal_keys:
        return KeySource(kind="text", text=settings.seal_keys)
    if settings.seal_key_file:
        path = Path(settings.seal_key_file)
        is_credential = bool(folder) and path.parent == Path(folder)
        return KeySource(kind="credential" if is_credential else "file", where=str(path))
    if settings.seal_keychain:
        return KeySource(kind="keychain", where=settings.seal_keychain)
    if folder and (Path(folder) / FILE).exists():
        return KeySource(kind="credential", where=str(Path(folder) / FILE))
    return KeySource(kind="file", where=str(settings.data_path / "keys" / FILE), is_own=True)


def from_keychain(service: str, program: str = "/usr/bin/security") -> str:
    """The text of a generic password of the macOS keychain.

    ``security`` prints a password of several lines as hexadecimal digits.

    Raises:
        KeyRingError: there is no such entry, the keychain is locked, or it did not answer within 5 s.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program; the name comes from the settings
            [program, "find-generic-password", "-s", service, "-w"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_KEYCHAIN_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise KeyRingError("the keychain did not answer") from None
    if done.returncode != 0:
        # What security prints of its reason is for people at a terminal, and may hold the entry's attributes.
        raise KeyRingError(f"the keychain gave no entry of that name (security: {done.returncode})")
    try:
        text = done.stdout.decode("ascii").strip()
        return bytes.fromhex(text).decode("ascii") if _HEX.fullmatch(text) else text
    except UnicodeDecodeError:
        raise KeyRingError("the keychain's entry is not a key ring") from None


class LiveKeys:
    """A sealer whose keys follow their source: a new key is taken without a restart, and old ones go on opening.

    A ring that cannot be read, or has another root, changes nothing and is told in the log once: what is in use stays.
    """

    def __init__(self, source: KeySource) -> None:
        """Reads the ring. Raises as ``KeySource.load``."""
        self._source = source
        self._lock = threading.Lock()
        ring = source.load(create=True)
        self._mark = source.mark()
        self._asked_s = 0.0
        self._told = ""
        self.sealer = Sealer(ring, self._asked)

    def look(self) -> bool:
        """Take what the source holds now; whether it was another ring. May be called from any thread, waits for the
        disk (or the keychain), and does not raise."""
        with self._lock:
            try:
                mark = self._source.mark()
                if mark and mark == self._mark:
                    return False
                is_new = self.sealer.renew(self._source.load())
            except (KeyRingError, OSError) as error:
                self._tell(error_name(error))
                return False
            self._mark, self._told = mark, ""
        if is_new:
            log.info("keys_renewed", keys=len(self.sealer.ring.ids), current=self.sealer.ring.current)
        return is_new

    async def run(self) -> None:
        """Look again and again, also where there is nothing to see; ends by cancellation."""
        every_s = self._source.every_s
        if every_s is None:
            await asyncio.Event().wait()
            return
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)

    def _asked(self) -> KeyRing | None:
        """A record names a key that is not here."""
        if self._source.kind != "file":
            return None
        now_s = time.monotonic()
        if now_s - self._asked_s < _ASKED_EVERY_S and self._asked_s:
            return None
        self._asked_s = now_s
        return self.sealer.ring if self.look() else None

    def _tell(self, error: str) -> None:
        if error != self._told:
            self._told = error
            log.warning("keys_not_renewed", error=error)
