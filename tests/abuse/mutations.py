"""Frames that were once good: seeded changes to the golden frames, by structure and by bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

GOLDEN = [
    json.loads(path.read_bytes())
    for path in sorted((Path(__file__).parent.parent / "protocols" / "golden").glob("client.*.json"))
]

#: What a value is replaced by: other types, and the values at which readers stumble.
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    -0.0,
    2**31,
    2**53,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**300,
    1e308,
    5e-324,
    0.1,
    "",
    " ",
    "\u0000",
    "\u202e01 mg",
    "\u2066x",
    "\ufeff",
    "\uffff",
    "\ue000",
    "e\u0301" * 50,
    "a" * 200,
    "a" * 5_000,
    "../../etc/passwd",
    "7823\r\nFLUSHALL",
    "dr.s\u0430ntos",
    "💉",
    "%s%n{0.__class__}",
    "9999-12-31T23:59:59Z",
    "0000-00-00T00:00:00Z",
    "2026-02-30T25:61:61+99:99",
    [],
    {},
    [[]],
    [None] * 20,
    {"type": "session_end"},
    {"": ""},
    ["m-1", 1, None],
)
#: What JSON's own writer would not write; put in place of a marked value.
_RAW: tuple[str, ...] = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "01",
    "0x10",
    "1.",
    ".5",
    "+1",
    "9" * 400,
    "-" + "9" * 5_000,
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u12"',
    '"\\x41"',
    '"\t"',
    "'x'",
    "undefined",
    "tru",
    "",
    ",",
    "[" * 40 + "]" * 40,
    '{"a":' * 40 + "1" + "}" * 40,
    "[" * 9_000,
    '"' + "x" * 70_000 + '"',
)
_MARK = "\u0001raw\u0001"

Change = Callable[[random.Random, Any], Any]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a frame: the container and the key of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _swap_value(rng: random.Random, value: dict[str, Any]) -> None:
    inside, key = rng.choice(list(_places(value)))
    inside[key] = _copy(rng.choice(_VALUES))


def _drop(rng: random.Random, value: dict[str, Any]) -> None:
    del value[rng.choice(list(value))]


def _borrow(rng: random.Random, value: dict[str, Any]) -> None:
    """A field of another frame, under its name or another's."""
    other = rng.choice(GOLDEN)
    name = rng.choice(list(other))
    value[rng.choice([name, rng.choice(list(value))])] = _copy(other[name])


def _retype(rng: random.Random, value: dict[str, Any]) -> None:
    value["type"] = rng.choice([frame["type"] for frame in GOLDEN])


def _wrap(rng: random.Random, value: dict[str, Any]) -> None:
    """Deeper: the value in so many lists or objects."""
    inside, key = rng.choice(list(_places(value)))
    deep = inside[key]
    for _ in range(rng.choice((1, 5, 7, 8, 9, 30))):
        deep = [deep] if rng.random() < 0.5 else {"x": deep}
    inside[key] = deep


def _unknown(rng: random.Random, value: dict[str, Any]) -> None:
    many = rng.choice((1, 1, 10, 10, 500))
    first = rng.randrange(1_000_000)
    for value_at in range(min(many, 10)):
        value[f"k{first + value_at}"] = _copy(rng.choice(_VALUES))
    value.update((f"k{number}", None) for number in range(first + 10, first + many))


def _text_edit(rng: random.Random, value: dict[str, Any]) -> None:
    """One character more, less or other in one text."""
    texts = [(inside, key) for inside, key in _places(value) if isinstance(inside[key], str)]
    if not texts:
        return
    inside, key = rng.choice(texts)
    text = inside[key]
    at = rng.randrange(len(text) + 1)
    inside[key] = text[:at] + chr(rng.choice((0, 9, 10, 13, 27, 0x85, 0x202E, 0x2067, 0xE000, 0x1F480, 65))) + text[at:]


_BY_STRUCTURE = (_swap_value, _swap_value, _drop, _borrow, _retype, _wrap, _unknown, _text_edit)


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b'"', b"\\", b"\xed\xa0\x80", b"[" * 300))


def _repeat(rng: random.Random, data: bytearray) -> None:
    """A stretch twice: duplicate keys, two documents."""
    at = rng.randrange(len(data) + 1)
    end = rng.randrange(at, len(data) + 1)
    data[end:end] = data[at:end]


def _twice(_: random.Random, data: bytearray) -> None:
    data += bytes(data)


_BY_BYTES = (_flip, _flip, _cut, _insert, _repeat, _twice)


def _duplicate_key(rng: random.Random, text: str) -> str:
    """A key that stands twice, with another value first or last."""
    pair = f'"{rng.choice(("type", "content", "client_msg_id", "patient_id"))}":{json.dumps(rng.choice(_VALUES))}'
    return f"{{{pair},{text[1:]}" if rng.random() < 0.5 else f"{text[:-1]},{pair}}}"


def mutants(seed: int, *, msgpack: bool = False) -> Iterator[bytes]:
    """Changed frames without end; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        value = _copy(rng.choice(GOLDEN))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            if value:
                rng.choice(_BY_STRUCTURE)(rng, value)
        if msgpack:
            try:
                data = bytearray(msgspec.msgpack.encode(value))
            except OverflowError:  # MessagePack has no such number
                continue
        else:
            is_raw = rng.random() < 0.15 and bool(value)
            if is_raw:
                inside, key = rng.choice(list(_places(value)))
                inside[key] = _MARK
            text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
            if is_raw:
                text = text.replace(json.dumps(_MARK), rng.choice(_RAW), 1)
            if rng.random() < 0.05:
                text = _duplicate_key(rng, text)
            data = bytearray(text.encode("utf-8", "surrogatepass"))
        for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2))):
            rng.choice(_BY_BYTES)(rng, data)
        yield bytes(data)
