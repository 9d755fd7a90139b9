"""The chain of the audit: what a row is, how rows hang together, and what finds a row that was touched.

Plain functions over plain values. Row ``n`` has a body (canonical JSON), the hash ``SHA-256(hash of row
n-1 | body)``, and a MAC of that hash under a key of its own, ``k_n``. The key is used once:
``k_n+1 = HKDF-Expand(k_n)`` takes its place and nobody can compute it backwards, so whoever breaks in later cannot
make an earlier row again. Whoever holds ``k_1``, the seed, can compute all of them and check.

Cutting the end off leaves a chain that is whole. What finds that is a checkpoint: the size of the chain and the root
of the Merkle tree over its hashes (RFC 6962, section 2.1), kept on another machine.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

KEY_BYTES: Final = 32
HASH_BYTES: Final = hashlib.sha256().digest_size
#: Hexadecimal digits of a chain's name and of a row's own id.
NAME_DIGITS: Final = 16
ID_DIGITS: Final = 24

#: HKDF-Expand with one block of output is one HMAC over ``info | 0x01``. Source: RFC 5869, section 2.3.
_NEXT_KEY: Final = b"chatd audit next key 1\x01"
_ROW: Final = b"chatd audit row 1\n"
_CHECKPOINT: Final = b"chatd audit checkpoint 1\n"
_CHAIN: Final = b"chatd audit chain 1\n"
_LEAF, _NODE = b"\x00", b"\x01"

#: What may stand in a row: codes and ids. No space, so no sentence. Ids on the wire have at most 128 characters, and
#: people's go with a prefix.
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@+\-]*\Z", max_length=256)]
#: Ids that chatd itself makes have a form of their own: what a client makes up under their name does not fit.
Patient = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Alert = Annotated[str, Meta(pattern=r"^(al-[0-9a-f]{24})?\Z")]
Action = Annotated[str, Meta(pattern=r"^(act_[0-9a-f]{24})?\Z")]
Response = Annotated[str, Meta(pattern=r"^(resp_[0-9a-f]{16})?\Z")]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One thing that was done or refused. Codes and ids only: no field takes a space.

    event: a name of ``chatd.audit.events``. outcome: "ok", or the code of the refusal.
    at_ms: milliseconds since 1970 by the clock of ``node``; when it was done, not when it was written.
    id: random; the same row is never in the chain twice. seq: its place, from 1 without gaps; the chain gives it.
    patient: the keyed pseudonym, 64 hex digits. detail: a further code, such as the step of an action.
    count: how often it happened, where many refusals are told as one. late: written after the ledger was away.
    """

    event: Word
    at_ms: int
    id: Word
    outcome: Word = "ok"
    user: Word = ""
    roles: tuple[Word, ...] = ()
    session: Word = ""
    device: Word = ""
    department: Word = ""
    node: Word = ""
    patient: Patient = ""
    alert: Alert = ""
    action: Action = ""
    response: Response = ""
    detail: Word = ""
    count: int = 1
    late: bool = False
    seq: int = 0


class Entry(msgspec.Struct, frozen=True):
    """A row in its place: its canonical body, its hash and its MAC, as they are kept."""

    seq: int
    body: bytes
    hash: bytes
    mac: bytes


class Columns(msgspec.Struct, frozen=True):
    """What a table of entries is searched by: it repeats the body, and counts for nothing where it differs."""

    row_id: str
    at_ms: int
    event: str
    user: str
    patient: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves the machine: the chain's size, its newest hash and the Merkle root over all its hashes, in hex.

    ``mac`` is made with the key that follows row ``size``: it can be checked with the seed, and not made again later.
    """

    chain: str
    size: int
    at_ms: int
    head: str
    root: str
    mac: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where the chain stands: what the next row needs. Sealed wherever it is kept: it holds a key.

    ``key``: ``k`` of the next row. ``peaks``: the roots of the full subtrees of the Merkle tree, largest first.
    """

    chain: str
    size: int
    head: bytes
    key: bytes
    peaks: tuple[bytes, ...]
    checkpoint_size: int = 0
    checkpoint_ms: int = 0


class Fault(msgspec.Struct, frozen=True):
    """The first thing that is wrong: at which row (0: of the whole), and why, as a code of ``FAULTS``."""

    seq: int
    why: str


#: What a verifier can find, in words for people.
FAULTS: Final = {
    "gap": "a row is missing, or rows have changed places",
    "body": "the row is not one that chatd writes",
    "columns": "a column that is searched by says something else than the row",
    "hash": "the row or one before it was changed",
    "mac": "the row was not written with its key",
    "checkpoint_root": "the rows up to here are not those of a checkpoint that was sent away",
    "checkpoint_mac": "a checkpoint does not carry the mark of this chain",
    "checkpoint_beyond": "a checkpoint that was sent away knows more rows: the end was cut off, or it is an older copy",
    "checkpoint_chain": "a checkpoint that was sent away belongs to another chain: this one was put in its place",
    "state_size": "the chain's own state knows another number of rows",
    "state_head": "the chain's own state does not follow from the rows",
    "state_sealed": "the chain's own state does not open: it was changed, or the keys are others",
    "no_chain": "there is no chain and a checkpoint knows one",
}

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(Row).decode
encode_checkpoint = msgspec.json.Encoder(order="sorted").encode
decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode


def new_id() -> str:
    """A row's own id, random."""
    return secrets.token_hex(ID_DIGITS // 2)


def checked(row: Row) -> Row:
    """The row, if it is one that may be written. Raises ValueError: a field has a form that no row may have."""
    try:
        return msgspec.convert(msgspec.to_builtins(row), Row)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a row of the audit: {error}") from None


def body_of(row: Row) -> bytes:
    """The one encoding of a row: JSON, fields in alphabetical order, none that has its default."""
    return _encode(row)


def row_of(body: bytes) -> Row:
    """The row of a body. Raises ValueError where it is not the one encoding of a row."""
    try:
        row = _decode(body)
    except msgspec.DecodeError:
        raise ValueError("not a row") from None
    if _encode(row) != body:
        raise ValueError("not the canonical encoding of a row")
    return row


def columns_of(row: Row) -> Columns:
    """What a row is searched by."""
    return Columns(row.id, row.at_ms, row.event, row.user, row.patient)


def next_key(key: bytes) -> bytes:
    """The key of the next row; from it this one cannot be computed."""
    return hmac.digest(key, _NEXT_KEY, "sha256")


def begin(chain: str, seed: bytes) -> State:
    """A chain without rows. Its first hash follows from its name, so that no row fits into another chain."""
    return State(chain=chain, size=0, head=_first(chain), key=seed, peaks=())


def append(state: State, rows: Iterable[Row]) -> tuple[State, list[Entry]]:
    """The rows in their places, and where the chain stands then; each takes some ten microseconds."""
    size, head, key, peaks = state.size, state.head, state.key, list(state.peaks)
    entries: list[Entry] = []
    for row in rows:
        size += 1
        body = body_of(msgspec.structs.replace(row, seq=size))
        head = hashlib.sha256(head + body).digest()
        entries.append(Entry(size, body, head, _row_mac(key, head)))
        key = next_key(key)
        _push(peaks, size, head)
    return msgspec.structs.replace(state, size=size, head=head, key=key, peaks=tuple(peaks)), entries


def checkpoint(state: State, at_ms: int) -> tuple[State, Checkpoint]:
    """A checkpoint of the chain as it stands, and the state that remembers when it was made."""
    bare = Checkpoint(
        chain=state.chain, size=state.size, at_ms=at_ms, head=state.head.hex(), root=root_of(state.peaks).hex()
    )
    made = msgspec.structs.replace(bare, mac=_checkpoint_mac(state.key, bare))
    return msgspec.structs.replace(state, checkpoint_size=state.size, checkpoint_ms=at_ms), made


def root_of(peaks: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, section 2.1, out of the full subtrees' roots, largest first."""
    if not peaks:
        return hashlib.sha256().digest()
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = hashlib.sha256(_NODE + peak + root).digest()
    return root


def _push(peaks: list[bytes], size: int, leaf: bytes) -> None:
    """Add the leaf that makes the tree ``size`` leaves large."""
    node = hashlib.sha256(_LEAF + leaf).digest()
    # Each zero at the end of the size is a subtree that has become full.
    while size % 2 == 0:
        node = hashlib.sha256(_NODE + peaks.pop() + node).digest()
        size //= 2
    peaks.append(node)


def _first(chain: str) -> bytes:
    return hashlib.sha256(_CHAIN + chain.encode()).digest()


def _row_mac(key: bytes, head: bytes) -> bytes:
    return hmac.digest(key, _ROW + head, "sha256")


def _checkpoint_mac(key: bytes, bare: Checkpoint) -> str:
    return hmac.digest(key, _CHECKPOINT + encode_checkpoint(bare), "sha256").hex()


class Verifier:
    """Walks a chain from its first row and tells the first thing that is wrong.

    ``feed`` each entry in order, then ``finish``; after a fault all further calls give the same one. Without the seed
    nothing under a key is checked: then a chain that was made anew as a whole is found by checkpoints alone.
    """

    def __init__(self, chain: str, seed: bytes | None, checkpoints: Iterable[Checkpoint] = ()) -> None:
        """``checkpoints``: those that were sent elsewhere, from as many places as there are, in any order."""
        self.size = 0
        self.fault: Fault | None = None
        self._head = _first(chain)
        self._key = seed
        self._peaks: list[bytes] = []
        self._expected: dict[int, list[Checkpoint]] = {}
        for each in checkpoints:
            if each.chain != chain:
                self._fail(0, "checkpoint_chain")
            self._expected.setdefault(each.size, []).append(each)
        self._compare()

    def feed(self, entry: Entry, columns: Columns | None = None) -> Fault | None:
        """Look at the next entry; ``columns``: what stands beside it to search by, where it comes from a table."""
        if self.fault is not None:
            return self.fault
        seq = self.size + 1
        if entry.seq != seq:
            return self._fail(seq, "gap")
        try:
            said = row_of(entry.body)
        except ValueError:
            return self._fail(seq, "body")
        if said.seq != seq:
            return self._fail(seq, "gap")
        if columns is not None and columns != columns_of(said):
            return self._fail(seq, "columns")
        head = hashlib.sha256(self._head + entry.body).digest()
        if head != entry.hash:
            return self._fail(seq, "hash")
        if self._key is not None:
            if not hmac.compare_digest(_row_mac(self._key, head), entry.mac):
                return self._fail(seq, "mac")
            self._key = next_key(self._key)
        self.size, self._head = seq, head
        _push(self._peaks, seq, head)
        return self._compare()

    def finish(self, state: State | None = None) -> Fault | None:
        """There are no more entries. ``state``: what the chain says of itself, where it is known."""
        if self.fault is not None:
            return self.fault
        if self._expected:
            return self._fail(self.size + 1, "checkpoint_beyond")
        if state is not None:
            if state.size != self.size:
                return self._fail(min(state.size, self.size) + 1, "state_size")
            if state.head != self._head or list(state.peaks) != self._peaks:
                return self._fail(0, "state_head")
            if self._key is not None and state.key != self._key:
                return self._fail(0, "state_head")
        return None

    def _compare(self) -> Fault | None:
        for each in self._expected.pop(self.size, ()):
            if each.head != self._head.hex() or each.root != root_of(self._peaks).hex():
                return self._fail(self.size, "checkpoint_root")
            if self._key is not None:
                bare = msgspec.structs.replace(each, mac="")
                if not hmac.compare_digest(_checkpoint_mac(self._key, bare), each.mac):
                    return self._fail(self.size, "checkpoint_mac")
        return self.fault

    def _fail(self, seq: int, why: str) -> Fault:
        if self.fault is None:
            self.fault = Fault(seq, why)
        return self.fault
