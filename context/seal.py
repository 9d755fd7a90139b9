"""Sealing of everything with patient text that leaves the process: AES-256-GCM under a ring of keys.

A sealed record is bytes: ``version | key id length | key id | nonce | ciphertext and tag``, that is one byte 0x01,
one byte with the length, 1 to 32 bytes of ASCII, 12 random bytes, and the ciphertext with its tag of 16 bytes.
The part before the nonce is authenticated too, with the ``aad`` of the caller: the name of the Redis key (or the
row) that holds the record, so that a record that is moved elsewhere does not open there.

Nonces are random. NIST SP 800-38D, section 8.3 allows 2**32 random nonces of 96 bits under one key; at a thousand
records a second that is 49 days, so a busy hospital adds a key each month (``KeyRing.add``), and a
record stays readable as long as its key is in the ring.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import ChatdError

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
#: The id of the ring's root in its text form.
ROOT = "root"
#: More keys than anybody rotates through in the life of a record; a longer file is a mistake.
MAX_KEYS = 64
_MAX_FILE_BYTES = 8192
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,31}")


class KeyRingError(ChatdError):
    """The keys cannot be used: bad text, a file that others may read, no file. Never holds key material."""


class SealError(ChatdError):
    """A sealed record does not open.

    ``reason`` is "format" (no sealed record at all), "key_unknown" (sealed under ``key_id``, which is not in
    the ring) or "tampered" (changed, cut, or sealed for another place). Never holds content.
    """

    def __init__(self, reason: str, key_id: str | None = None) -> None:
        super().__init__(reason if key_id is None else f"{reason}: key {key_id}")
        self.reason = reason
        self.key_id = key_id


class KeyRing:
    """Keys of 32 bytes by their ids, and a root for ``Sealer.derive``; immutable.

    The first key seals (``current``); all open. Text form: one line per key, ``id:base64``; the line with the
    id "root" is the root, which never seals. A ring without that line, as a single key in a setting, takes its
    last key as root, and keeps it as such when it grows. Empty lines and those that begin with "#" are ignored.
    """

    def __init__(self, keys: dict[str, bytes], root: bytes | None = None) -> None:
        """Take ``keys`` in order, current first. Raises KeyRingError for bad ids, sizes or numbers of keys."""
        if not 1 <= len(keys) <= MAX_KEYS:
            raise KeyRingError(f"a key ring holds 1 to {MAX_KEYS} keys that seal")
        for key_id, key in (keys | ({} if root is None else {ROOT: root})).items():
            if _KEY_ID.fullmatch(key_id) is None:
                raise KeyRingError("a key id is 1 to 32 letters, digits, dots, dashes or underscores")
            if len(key) != KEY_BYTES:
                raise KeyRingError(f"key {key_id} does not have {KEY_BYTES} bytes")
        if ROOT in keys:
            raise KeyRingError("the root does not seal")
        self._keys = dict(keys)
        self._root = keys[next(reversed(keys))] if root is None else root

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._keys)})"

    @property
    def current(self) -> str:
        """Id of the key that seals."""
        return next(iter(self._keys))

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the keys that open, current first."""
        return tuple(self._keys)

    @property
    def root(self) -> bytes:
        """The 32 bytes that other keys are derived from."""
        return self._root

    def key(self, key_id: str) -> bytes:
        """The key's 32 bytes. Raises KeyError if it is not in the ring."""
        return self._keys[key_id]

    @classmethod
    def generate(cls) -> KeyRing:
        """A ring with one new random key and a new root."""
        return cls({_new_id(): secrets.token_bytes(KEY_BYTES)}, secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """The ring of a text form, from a file or a setting. Raises KeyRingError, naming the line only."""
        keys: dict[str, bytes] = {}
        for number, raw in enumerate(text.splitlines(), start=1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            key_id, _, encoded = line.partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise KeyRingError(f"line {number} of the key ring is not id:base64") from None
            if key_id in keys:
                raise KeyRingError(f"line {number} of the key ring repeats a key id")
            keys[key_id] = key
        root = keys.pop(ROOT, None)
        return cls(keys, root)

    def text(self) -> str:
        """The text form: secret, for a file of mode 0600 only."""
        lines = self._keys | {ROOT: self._root}
        return "".join(f"{key_id}:{base64.b64encode(key).decode()}\n" for key_id, key in lines.items())

    @classmethod
    def load(cls, path: Path, *, create: bool = False, is_credential: bool = False) -> KeyRing:
        """Read the ring from ``path``; with ``create``, make it with one new key where there is none.

        ``is_credential``: the service manager put it there. Such a file is root's and lets one account in by an access
        list, whose mask stands where the group's bits are; so a mode of 0440 is private there.

        Two processes that create at once end up with the same ring: a complete file is linked into place,
        and whoever comes second reads the first one's.

        Raises:
            KeyRingError: no file, not a plain file, too long, not a ring, or readable by group or others.
            OSError: the folder cannot be read or written.
        """
        try:
            return cls._read(path, is_credential=is_credential)
        except FileNotFoundError:
            if not create:
                raise KeyRingError(f"no key file at {path}") from None
        new = _write_beside(path, cls.generate().text())
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path, *, is_credential: bool = False) -> KeyRing:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file: what is checked is what is read
            if not stat.S_ISREG(status.st_mode):
                raise KeyRingError(f"{path} is not a file")
            if not is_private(status, is_credential=is_credential):
                raise KeyRingError(f"{path} may be read by others: chmod 600 it, and change the keys")
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise KeyRingError(f"{path} is too long for a key ring")
        try:
            return cls.parse(data.decode("ascii"))
        except UnicodeDecodeError:
            raise KeyRingError(f"{path} is not a key ring") from None

    def save(self, path: Path) -> None:
        """Write the ring to ``path`` with mode 0600, whole or not at all, replacing what is there."""
        _write_beside(path, self.text()).replace(path)

    def add(self, key_id: str | None = None, key: bytes | None = None, *, current: bool = True) -> KeyRing:
        """A ring with one more key: a random one with a random id unless given.

        ``current``: it seals from now on. With several gateways, give all of them the new key with
        ``current=False`` first and ``promote`` it when each has it; else one seals what another cannot open.
        Raises KeyRingError if the id is there already.
        """
        key_id = _new_id() if key_id is None else key_id
        if key_id in self._keys:
            raise KeyRingError(f"key {key_id} is in the ring already")
        new = {key_id: secrets.token_bytes(KEY_BYTES) if key is None else key}
        return KeyRing(new | self._keys if current else self._keys | new, self._root)

    def promote(self, key_id: str) -> KeyRing:
        """A ring in which ``key_id`` seals; the others keep their order. Raises KeyRingError if unknown."""
        if key_id not in self._keys:
            raise KeyRingError(f"key {key_id} is not in the ring")
        return KeyRing({key_id: self._keys[key_id]} | self._keys, self._root)

    def remove(self, key_id: str) -> KeyRing:
        """A ring without ``key_id``: what it sealed is shredded. Raises KeyRingError if unknown or the only one."""
        if key_id not in self._keys:
            raise KeyRingError(f"key {key_id} is not in the ring")
        return KeyRing({each: key for each, key in self._keys.items() if each != key_id}, self._root)


def is_private(status: os.stat_result, *, is_credential: bool = False) -> bool:
    """Whether a file of this state is for one account alone; ``is_credential`` as in ``KeyRing.load``."""
    shared = 0o037 if is_credential and status.st_uid == 0 else 0o077
    return not status.st_mode & shared


class _Ready:
    """A ring with its ciphers, replaced as a whole: a thread that seals meanwhile uses the one or the other."""

    __slots__ = ("cipher", "ciphers", "header", "ring")

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.ciphers = {key_id: AESGCM(ring.key(key_id)) for key_id in ring.ids}
        self.header = _header(ring.current)
        self.cipher = self.ciphers[ring.current]


class Sealer:
    """Seals and opens records with a ring that may be renewed; may be shared by tasks and threads."""

    def __init__(self, ring: KeyRing, renewed: Callable[[], KeyRing | None] | None = None) -> None:
        """``renewed``: asked when a record names a key that is not in the ring; gives a newer ring, or None. It is
        called in whatever thread opens, must end soon and must not raise."""
        self._ready = _Ready(ring)
        self._renewed = renewed

    @property
    def ring(self) -> KeyRing:
        return self._ready.ring

    def renew(self, ring: KeyRing) -> bool:
        """Seal and open with ``ring`` from now on; False if it is the one in use.

        Raises:
            KeyRingError: its root is another one. Names and pseudonyms come from the root, in the whole installation
                at once: that is a restart.
        """
        if ring.root != self.ring.root:
            raise KeyRingError("the ring has another root: restart everything that uses it")
        if ring.text() == self.ring.text():
            return False
        self._ready = _Ready(ring)
        return True

    def seal(self, plaintext: bytes, *, aad: bytes) -> bytes:
        """Seal ``plaintext`` for the place that ``aad`` names; twice gives two different records.

        The result is ``len(plaintext)`` + 30 bytes + the length of the key id.
        """
        ready, nonce = self._ready, secrets.token_bytes(NONCE_BYTES)
        return ready.header + nonce + ready.cipher.encrypt(nonce, plaintext, ready.header + aad)

    def open(self, sealed: bytes, *, aad: bytes) -> bytes:
        """The plaintext of ``sealed``. Raises SealError if it does not open here."""
        if len(sealed) < 2 or sealed[0] != VERSION:
            raise SealError("format")
        header_bytes = 2 + sealed[1]
        if sealed[1] == 0 or len(sealed) < header_bytes + NONCE_BYTES + TAG_BYTES:
            raise SealError("format")
        key_id = sealed[2:header_bytes].decode("ascii", errors="replace")
        if _KEY_ID.fullmatch(key_id) is None:
            raise SealError("format")
        cipher = self._ready.ciphers.get(key_id) or self._look_again(key_id)
        if cipher is None:
            raise SealError("key_unknown", key_id)
        nonce_end = header_bytes + NONCE_BYTES
        try:
            return cipher.decrypt(sealed[header_bytes:nonce_end], sealed[nonce_end:], sealed[:header_bytes] + aad)
        except InvalidTag:
            raise SealError("tampered", key_id) from None

    def derive(self, purpose: str) -> bytes:
        """32 bytes for another use than sealing, e.g. "pseudonym" or "confirm-token".

        HKDF-SHA256 (RFC 5869) from the ring's root: the same on every node, in every process and after every
        added key; one purpose tells nothing about another.
        """
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"chatd:" + purpose.encode()).derive(self.ring.root)

    def _look_again(self, key_id: str) -> AESGCM | None:
        """The cipher of a key that another process has taken before this one, if it is there now."""
        ring = self._renewed() if self._renewed is not None else None
        if ring is None or ring.root != self.ring.root:
            return None
        self.renew(ring)
        return self._ready.ciphers.get(key_id)


def _header(key_id: str) -> bytes:
    return bytes((VERSION, len(key_id))) + key_id.encode("ascii")


def _new_id() -> str:
    # 32 random bits tell a ring's keys apart; the id is no secret and stands before each record.
    return f"k{secrets.token_hex(4)}"


def _write_beside(path: Path, text: str) -> Path:
    """Write ``text`` to a new file of mode 0600 in ``path``'s folder, durably, and return where."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600 from the start
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
