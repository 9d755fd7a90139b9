"""The audit's chain: rows hang together, and whatever is done to them without the keys is found."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.audit import chain
from chatd.audit.chain import Checkpoint, Columns, Entry, Fault, Row, State, Verifier

SEED = b"s" * 32
NAME = "0123456789abcdef"
ROWS = 24
#: A row, a checkpoint, and more rows after it: sizes at which checkpoints were sent away.
SENT_AT = (7, 16, 24)
EVENTS = ("question", "patient.open", "answer", "alert.raised", "action", "token.refused")


def row(n: int, **changes: object) -> Row:
    fields: dict[str, object] = {
        "event": EVENTS[n % len(EVENTS)],
        "at_ms": 1_768_463_120_000 + n,
        "id": f"{n:024x}",
        "user": f"dr.{n % 5}",
        "roles": ("physician",),
        "department": "cardiology",
        "node": "n-1",
        "patient": f"{n % 3:064x}",
    }
    return Row(**(fields | changes))  # type: ignore[arg-type]


class Copy:
    """One state of a database: its entries and what the chain says of itself."""

    def __init__(self, entries: Sequence[Entry], state: State) -> None:
        self.entries = list(entries)
        self.state = state


class History:
    """A chain as it grew: a copy after each row, and the checkpoints that were sent away."""

    def __init__(self, rows: int = ROWS) -> None:
        state, entries = chain.begin(NAME, SEED), list[Entry]()
        self.copies = [Copy(entries, state)]
        self.sent: list[Checkpoint] = []
        for n in range(1, rows + 1):
            state, more = chain.append(state, [row(n)])
            entries += more
            if n in SENT_AT:
                state, made = chain.checkpoint(state, 1_768_463_120_000 + n)
                self.sent.append(made)
            self.copies.append(Copy(entries, state))

    def verify(self, copy: Copy, *, seed: bytes | None = SEED) -> Fault | None:
        verifier = Verifier(NAME, seed, self.sent)
        for entry in copy.entries:
            if verifier.feed(entry) is not None:
                break
        return verifier.finish(copy.state)


@pytest.fixture(scope="module")
def history() -> History:
    return History()


# --- what is done to it -------------------------------------------------------------------------------------

Tampering = Callable[[random.Random, History], Copy]


def edit(rng: random.Random, history: History) -> Copy:
    """Change one thing of one entry: a field of the row, a byte of its body, its hash or its MAC, its number."""
    copy = Copy(history.copies[-1].entries, history.copies[-1].state)
    at = rng.randrange(ROWS)
    entry = copy.entries[at]
    what = rng.randrange(5)
    if what == 0:
        name, value = rng.choice([("user", "dr.other"), ("outcome", "forbidden"), ("patient", "f" * 64), ("count", 9)])
        entry = msgspec.structs.replace(
            entry, body=chain.body_of(msgspec.structs.replace(chain.row_of(entry.body), **{name: value}))
        )
    elif what < 4:
        field = ("body", "hash", "mac")[what - 1]
        data = bytearray(getattr(entry, field))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        entry = msgspec.structs.replace(entry, **{field: bytes(data)})
    else:
        entry = msgspec.structs.replace(entry, seq=entry.seq + rng.choice((-1, 1, ROWS)))
    copy.entries[at] = entry
    return copy


def delete(rng: random.Random, history: History) -> Copy:
    """Take one entry or some in a row out, and close the gap in the numbers or not."""
    copy = Copy(history.copies[-1].entries, history.copies[-1].state)
    at, count = rng.randrange(ROWS - 3), rng.randint(1, 3)
    del copy.entries[at : at + count]
    if rng.random() < 0.5:
        copy.entries = [msgspec.structs.replace(entry, seq=n) for n, entry in enumerate(copy.entries, start=1)]
    return copy


def swap(rng: random.Random, history: History) -> Copy:
    """Let two entries change places, with their numbers or without."""
    copy = Copy(history.copies[-1].entries, history.copies[-1].state)
    one, other = rng.sample(range(ROWS), 2)
    first, second = copy.entries[one], copy.entries[other]
    if rng.random() < 0.5:
        first, second = (
            msgspec.structs.replace(first, seq=second.seq),
            msgspec.structs.replace(second, seq=first.seq),
        )
    copy.entries[one], copy.entries[other] = second, first
    return copy


def truncate(rng: random.Random, history: History) -> Copy:
    """Cut off the end and leave the chain's state as it is."""
    copy = Copy(history.copies[-1].entries, history.copies[-1].state)
    del copy.entries[rng.randrange(ROWS) :]
    return copy


def roll_back(rng: random.Random, history: History) -> Copy:
    """Put an older copy back, whole and with the state it had: nothing in it is wrong."""
    return history.copies[rng.randrange(SENT_AT[-1])]


def rewrite(rng: random.Random, history: History) -> Copy:
    """Compute everything anew from some row on, with keys that are not the chain's; a row is left out or changed."""
    start = rng.randrange(ROWS)
    before = history.copies[start]
    forged = msgspec.structs.replace(before.state, key=rng.randbytes(32))
    rows = [row(n, user="dr.nobody" if n == start + 1 else f"dr.{n % 5}") for n in range(start + 1, ROWS + 1)]
    if len(rows) > 1 and rng.random() < 0.3:
        del rows[0]
    forged, entries = chain.append(forged, rows)
    state = msgspec.structs.replace(forged, checkpoint_size=ROWS)
    return Copy([*before.entries[:start], *entries], state)


TAMPERINGS: tuple[Tampering, ...] = (edit, delete, swap, truncate, roll_back, rewrite)


def test_history_without_tampering_is_whole(history: History) -> None:
    """The chain as it is verifies, with the seed and without, and so does each copy that knows all checkpoints."""
    assert history.verify(history.copies[-1]) is None
    assert history.verify(history.copies[-1], seed=None) is None


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda each: each.__name__)
def test_tamperings_are_all_found(history: History, tampering: Tampering) -> None:
    """1,700 seeded tamperings of each kind, over 10,000 in all: every one is found."""
    rng = random.Random(tampering.__name__)
    missed = [n for n in range(1_700) if history.verify(tampering(rng, history)) is None]
    assert missed == []


def test_rewriting_is_found_without_the_seed_where_a_checkpoint_left(history: History) -> None:
    """Who has no seed cannot check a key; what lies before a checkpoint that was sent away is safe all the same."""
    rng = random.Random(5)
    assert all(history.verify(rewrite(rng, history), seed=None) is not None for _ in range(300))


def test_thief_of_the_key_cannot_change_what_was(history: History) -> None:
    """With the state of now, its key included, an earlier row cannot be made anew."""
    thief = history.copies[-1].state
    for start in range(ROWS):
        forged = msgspec.structs.replace(history.copies[start].state, key=thief.key)
        forged, entries = chain.append(forged, [row(n, user="dr.nobody") for n in range(start + 1, ROWS + 1)])
        verifier = Verifier(NAME, SEED)  # no checkpoint has left
        for entry in [*history.copies[start].entries[:start], *entries]:
            verifier.feed(entry)
        assert verifier.finish() == Fault(start + 1, "mac")


def test_key_goes_forward_only() -> None:
    """Each row has a key of its own, and the state after it holds none of those before."""
    state = chain.begin(NAME, SEED)
    keys = [state.key]
    for n in range(50):
        state, _ = chain.append(state, [row(n)])
        assert state.key not in keys
        assert chain.next_key(keys[-1]) == state.key
        keys.append(state.key)


def test_first_fault_is_named(history: History) -> None:
    """The verifier tells which row is the first that does not hold, and why."""
    copy = Copy(history.copies[-1].entries, history.copies[-1].state)
    copy.entries[9] = msgspec.structs.replace(copy.entries[9], mac=b"\0" * 32)
    copy.entries[12] = msgspec.structs.replace(copy.entries[12], seq=99)
    assert history.verify(copy) == Fault(10, "mac")
    assert history.verify(Copy(copy.entries[:5], copy.state)) == Fault(6, "checkpoint_beyond")
    assert {fault.why for fault in (Fault(10, "mac"),)} <= chain.FAULTS.keys()


def test_columns_that_lie_are_found(history: History) -> None:
    """A report searches by columns: one that says something else than the row is a fault."""
    entry = history.copies[-1].entries[0]
    right = chain.columns_of(chain.row_of(entry.body))
    assert Verifier(NAME, SEED).feed(entry, right) is None
    wrong = Columns(right.row_id, right.at_ms, right.event, "dr.other", right.patient)
    assert Verifier(NAME, SEED).feed(entry, wrong) == Fault(1, "columns")


def test_checkpoint_of_another_chain_is_a_fault(history: History) -> None:
    """A fresh chain in place of the old one does not get by the old one's checkpoints."""
    other = Verifier("f" * 16, SEED, history.sent)
    assert other.finish() == Fault(0, "checkpoint_chain")


def test_forged_checkpoint_is_a_fault(history: History) -> None:
    """A checkpoint without the chain's mark is told, so that nobody replaces those that are kept elsewhere unseen."""
    forged = msgspec.structs.replace(history.sent[0], mac="0" * 64)
    verifier = Verifier(NAME, SEED, [forged])
    for entry in history.copies[-1].entries:
        verifier.feed(entry)
    assert verifier.finish() == Fault(SENT_AT[0], "checkpoint_mac")


# --- encodings ----------------------------------------------------------------------------------------------


def merkle(leaves: Sequence[bytes]) -> bytes:
    """The tree hash as RFC 6962, section 2.1 writes it: by halves."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + merkle(leaves[:half]) + merkle(leaves[half:])).digest()


@given(st.integers(min_value=0, max_value=200))
def test_root_is_that_of_rfc_6962(size: int) -> None:
    """The root kept by peaks is the tree hash of the standard, whatever the size."""
    state, entries = chain.append(chain.begin(NAME, SEED), [row(n) for n in range(size)])
    assert chain.root_of(state.peaks) == merkle([entry.hash for entry in entries])


def test_next_key_is_hkdf() -> None:
    """The step from key to key is HKDF-Expand of RFC 5869 with SHA-256, as the cryptography library computes it."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    assert chain.next_key(SEED) == HKDFExpand(SHA256(), 32, info=b"chatd audit next key 1").derive(SEED)


def test_row_has_one_encoding() -> None:
    """Another order of fields, a space, a default that is written out or a stranger's field is no row."""
    body = chain.body_of(row(1, seq=1))
    assert chain.row_of(body) == row(1, seq=1)
    for other in (
        body.replace(b',"', b', "', 1),
        body[:-1] + b',"late":false}',
        body[:-1] + b',"text":"x"}',
        b"{" + body[body.index(b",") + 1 : -1] + b"," + body[1 : body.index(b",")] + b"}",
        b"[]",
        b"",
    ):
        with pytest.raises(ValueError, match="not"):
            chain.row_of(other)


@pytest.mark.parametrize(
    "field",
    [
        {"user": "Maria Silva"},
        {"detail": "dor torácica"},
        {"session": "a\nb"},
        {"patient": "7823"},
        {"alert": "chest-pain"},
        {"action": "give-5-mg"},
        {"response": "r"},
        {"roles": ("a b",)},
        {"device": "x" * 257},
    ],
)
def test_row_takes_no_content(field: dict[str, object]) -> None:
    """No field takes a space, a letter with an accent, or under an id's name something that chatd did not make."""
    with pytest.raises(ValueError, match="not a row"):
        chain.checked(row(1, **field))
