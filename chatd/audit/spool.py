"""Rows that wait on this machine's disk while the ledger is away: one file, one line each, synced before it is told.

Each process has a file of its own, locked while it lives; what a dead one has left, the next to start takes over.

A line is a row's body and a MAC over the line before and this one. Whoever changes or removes one in the middle is
found when the file is read. The rows go into the chain as soon as the ledger answers, marked ``late``.
"""

from __future__ import annotations

import fcntl
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chatd.audit.chain import Row, body_of, row_of

#: Some 200,000 rows: hours of a whole hospital without its ledger.
MAX_BYTES: Final = 64 * 1024 * 1024
_MAC_DIGITS: Final = 64


#: Processes of one data directory that may have a file at the same time.
MAX_FILES: Final = 64


class SpoolFull(OSError):
    """The file has its bound, or there are too many files."""


class Spool:
    """One process' file, used by one of its threads; every method waits for the disk. All raise OSError."""

    def __init__(self, folder: Path, key: bytes, *, max_bytes: int = MAX_BYTES, slot: int | None = None) -> None:
        """``folder``: exists. ``key``: 32 bytes, the same after a restart. ``slot``: that file, not the first free."""
        self._folder = folder
        self._slots = range(MAX_FILES) if slot is None else (slot,)
        self._key = key
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self._last = b""
        self._bytes = 0

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows and sync; all of them, or none that is read later. Raises SpoolFull."""
        descriptor = self._open()
        before, last = self._bytes, self._last
        lines = bytearray()
        for row in rows:
            body = body_of(row)
            last = self._mac(last, body)
            lines += last + b" " + body + b"\n"
        if before + len(lines) > self._max_bytes:
            raise SpoolFull
        try:
            done = 0
            while done < len(lines):
                done += os.pwrite(descriptor, lines[done:], before + done)
            os.fsync(descriptor)
        except OSError:
            self.close()
            raise
        self._bytes, self._last = before + len(lines), last

    def read(self) -> tuple[list[Row], int, int]:
        """The rows that wait, in order, how many lines are damaged, and the bytes of all of them.

        A torn last line is not damage: nobody was told that it is there.
        """
        self._open()
        return self._scan()

    def clear(self, size_bytes: int) -> bool:
        """Forget all rows, if the file still has ``size_bytes``; False: there are more, and nothing is forgotten."""
        descriptor = self._open()
        if self._bytes != size_bytes:
            return False
        os.ftruncate(descriptor, 0)
        os.fsync(descriptor)
        self._bytes, self._last = 0, b""
        return True

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def left_behind(self) -> list[Spool]:
        """The files of processes that are gone, each locked until it is closed."""
        others = []
        for slot in range(MAX_FILES):
            if _path(self._folder, slot).exists():
                other = Spool(self._folder, self._key, max_bytes=self._max_bytes, slot=slot)
                try:
                    other._open()
                except SpoolFull:
                    continue  # it is alive, or it is this one
                others.append(other)
        return others

    def _open(self) -> int:
        if self._descriptor is not None:
            return self._descriptor
        for slot in self._slots:
            descriptor = os.open(_path(self._folder, slot), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._descriptor = descriptor
            _, _, self._bytes = self._scan()
            return descriptor
        raise SpoolFull

    def _scan(self) -> tuple[list[Row], int, int]:
        """The rows, the lines that do not hold, and where the next line belongs: after the last whole one."""
        assert self._descriptor is not None  # noqa: S101 - opened by the callers
        data = bytearray()
        while chunk := os.pread(self._descriptor, 1 << 20, len(data)):
            data += chunk
        rows: list[Row] = []
        bad, last = 0, b""
        whole = data.rfind(b"\n") + 1
        for line in bytes(data[:whole]).split(b"\n")[:-1]:
            mac, body = line[:_MAC_DIGITS], line[_MAC_DIGITS + 1 :]
            try:
                row = row_of(body)
            except ValueError:
                bad, last = bad + 1, mac
                continue
            bad += not hmac.compare_digest(mac, self._mac(last, body))
            # What does not hold is kept all the same: it says more than nothing, and is counted as damaged.
            rows.append(msgspec.structs.replace(row, late=True))
            last = mac
        self._last = last
        return rows, bad, whole

    def _mac(self, last: bytes, body: bytes) -> bytes:
        return hmac.digest(self._key, last + b"\n" + body, "sha256").hex().encode()


def _path(folder: Path, slot: int) -> Path:
    return folder / f"audit-{slot}.spool"
