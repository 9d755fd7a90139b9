"""What HL7 messages have said, kept on disk: acknowledged results must outlive a lost Redis, and no file has them."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from context.hl7_heard import Heard
from context.seal import Sealer, SealError

FOLDER_NAME: Final = "hl7"


def _silent(_name: str) -> None:
    return None


class HeardFiles:
    """What messages have said, one sealed file per patient, named by a keyed digest of her number.

    A file is replaced as a whole and is on the disk when ``save`` returns.
    """

    def __init__(self, data: Path, sealer: Sealer, on_broken: Callable[[str], None] = _silent) -> None:
        self._folder = data / FOLDER_NAME
        self._sealer = sealer
        self._on_broken = on_broken
        self._naming_key = sealer.derive("hl7-names")

    def load(self, patient_id: str) -> Heard | None:
        """What is known of a patient; None if nothing is. A file that does not open is set aside, and told."""
        return self._read(self._folder / self.name(patient_id))

    def save(self, heard: Heard) -> None:
        """Write a patient's file and wait for the disk. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = self.name(heard.layer.patient_id)
        sealed = self._sealer.seal(msgspec.msgpack.encode(heard), aad=name.encode())
        beside = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._folder / name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def all(self) -> Iterator[Heard]:
        """Every patient, in no order."""
        for path in self._paths():
            if (heard := self._read(path)) is not None:
                yield heard

    def forget(self, before: datetime) -> int:
        """Remove the files of patients of whom nothing was heard since ``before``, but none that owes an alert."""
        removed = 0
        for path in self._paths():
            try:
                if path.stat().st_mtime >= before.timestamp():
                    continue
            except FileNotFoundError:
                continue
            heard = self._read(path)
            if heard is not None and heard.heard_at < before and not heard.owed:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _paths(self) -> list[Path]:
        try:
            return [path for path in sorted(self._folder.iterdir()) if re.fullmatch("[0-9a-f]{32}", path.name)]
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> Heard | None:
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.msgpack.decode(self._sealer.open(sealed, aad=path.name.encode()), type=Heard)
        except (SealError, msgspec.MsgspecError):
            # New results must not wait for somebody to look at it; what it held is in Redis until the next reload.
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, path.with_name(f"{path.name}.broken"))
            self._on_broken(path.name)
            return None

    def name(self, patient_id: str) -> str:
        """The file's name, which tells nobody the number."""
        return hmac.new(self._naming_key, patient_id.encode(), hashlib.sha256).hexdigest()[:32]
