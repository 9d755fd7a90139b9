"""SPEC.md and the tables tell the same: every frame, field, code and example."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import protocols
from protocols.codec import CLIENT_FRAMES, SERVER_FRAMES, CodecLimits, CompatContext, decode, decode_server, encode
from protocols.errors import (
    CLOSE_REASONS,
    ERRORS,
    CloseCode,
    ErrorCode,
    RemoteProtocolError,
    error_text,
)
from protocols.frames import SESSION_DURABLE, Frame

SPEC = (Path(protocols.__file__).parent / "SPEC.md").read_text("utf-8")
TOLD = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", SPEC, flags=re.DOTALL)))
TOLD |= {word for told in TOLD for word in re.findall(r"\w+", told)}
FRAMES = [*CLIENT_FRAMES.values(), *SERVER_FRAMES.values()]


def parts(kind: Any) -> set[type[msgspec.Struct]]:
    """``kind`` and the Structs that it is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {kind}.union(*(parts(field.type) for field in msgspec.structs.fields(kind)))
    return set().union(*(parts(each) for each in get_args(kind)))


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
def test_spec_names_every_field(kind: type[Frame]) -> None:
    """SPEC.md names the frame's type, and each of its fields in words or in an example."""
    in_examples = set(re.findall(r'"(\w+)":', SPEC))
    assert kind.__struct_config__.tag in TOLD
    for part in parts(kind):
        names = {field.encode_name for field in msgspec.structs.fields(part)}
        assert names <= TOLD | in_examples, (part, names - TOLD - in_examples)


def literals(kind: Any) -> set[str]:
    """The fixed values that the fields of a frame's parts may have."""
    found: set[str] = set()
    for part in parts(kind):
        for field in msgspec.structs.fields(part):
            for each in (field.type, *get_args(field.type)):
                found |= {value for value in get_args(each) if isinstance(value, str)}
    return found


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
def test_spec_names_every_value(kind: type[Frame]) -> None:
    """SPEC.md names each value of each field that has a fixed list of them."""
    assert literals(kind) <= TOLD


@pytest.mark.parametrize("code", list(ErrorCode))
def test_errors(code: ErrorCode) -> None:
    """Each error code has texts in both languages, and SPEC.md has its row with both and its retryability."""
    text = ERRORS[code]
    assert text.en
    assert text.pt
    assert text.en != text.pt
    (row,) = [line for line in SPEC.splitlines() if line.startswith(f"| `{code.value}` |")]
    assert f"| {'yes' if text.retryable else 'no'} |" in row
    assert row.endswith(f"| {text.en} | {text.pt} |")
    assert error_text(code, "pt-BR") == error_text(code, "PT") == text.pt
    assert error_text(code, "") == error_text(code, "de") == text.en


@pytest.mark.parametrize("code", list(CloseCode))
def test_close_codes(code: CloseCode) -> None:
    """Each close code has a reason that fits a close frame, and SPEC.md has its row with the verdict."""
    assert len(CLOSE_REASONS[code].encode()) <= 123  # RFC 6455 section 5.5: 125 bytes less the code
    assert f"| {code.value} | {CLOSE_REASONS[code]} | {'yes' if code.reconnect else 'no'} |" in SPEC
    assert code.reconnect == (code == 1001 or 4000 <= code <= 4499)


def test_tables_are_whole() -> None:
    """Neither table has a row too many or too few."""
    assert set(ERRORS) == set(ErrorCode)
    assert set(CLOSE_REASONS) == set(CloseCode)


@pytest.mark.parametrize("kind", SESSION_DURABLE, ids=lambda kind: kind.__name__)
def test_durable_frames_end_with_their_place(kind: type[Frame]) -> None:
    """epoch and seq are the last fields of each durable frame: ``with_position`` relies on it."""
    assert kind.__struct_fields__[-2:] == ("epoch", "seq")
    assert kind.__struct_defaults__[-2:] == ("", 0)


EXAMPLES = re.findall(r"```json\n(.*?)```", SPEC, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example[:40])
def test_spec_examples_decode(example: str) -> None:
    """Each example in SPEC.md is a frame, and has no field that the frame does not know."""
    raw = json.loads(example)
    if "type" not in raw:
        decode(example, limits=CodecLimits(), compat=CompatContext(user_id="u", department="d"))
        return
    frame = decode(example, limits=CodecLimits()) if raw["type"] in CLIENT_FRAMES else decode_server(example)
    known = json.loads(encode(frame))

    def check(told: Any, of_frame: Any) -> None:
        if isinstance(told, dict):
            assert set(told) <= set(of_frame)
            for name in told:
                check(told[name], of_frame[name])
        elif isinstance(told, list):
            for each, of_each in zip(told, of_frame, strict=True):
                check(each, of_each)
        else:
            assert told == of_frame

    check(raw, known)


def test_spec_has_examples() -> None:
    """The examples are found."""
    assert len(EXAMPLES) >= 6


def test_remote_protocol_error_holds_no_text() -> None:
    """What an exception prints is its code: a log line of it holds nothing else."""
    error = RemoteProtocolError(ErrorCode.BAD_REQUEST, "content: required", client_msg_id="m-1")
    assert str(error) == "bad_request"


@pytest.mark.parametrize(
    "module", ["protocols.session", "protocols.codec", "protocols.schema", "context.layers", "context.compose"]
)
def test_imports_are_pure(module: str) -> None:
    """A fresh interpreter that imports the rules has no event loop, no Redis, no web server and no chatd."""
    script = (
        f"import sys, {module}\n"
        "unwanted = {'asyncio', 'redis', 'starlette', 'uvicorn', 'websockets', 'sqlalchemy', 'chatd'}\n"
        "print(','.join(sorted(unwanted & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
