"""Bytes to frames and back: every form of a frame, every form of nonsense."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import codec, text
from protocols.codec import (
    CLIENT_FRAMES,
    FIELD_NAMES,
    SERVER_FRAMES,
    CodecLimits,
    CompatContext,
    compat_encode,
    decode,
    decode_server,
    encode,
    json_to_msgpack,
    with_position,
)
from protocols.errors import ERRORS, ErrorCode, LocalProtocolError, RemoteProtocolError
from protocols.frames import (
    SESSION_DURABLE,
    AiResponse,
    Error,
    Ping,
    Pong,
    ServerFrame,
    SystemNotification,
    UserMessage,
)

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
LIMITS = CodecLimits()
PATH = CompatContext(user_id="dr.santos.cardio", department="cardiology", session_id="sess_1", frame_id="c-1:1")
CLIENT_FILES = sorted(GOLDEN.glob("client.*.json"))
SERVER_FILES = sorted(GOLDEN.glob("server.*.json"))
ORIGINAL_FILES = sorted((GOLDEN / "original").glob("*.json"))
CASES = [json.loads(line) for line in (HERE / "bad_inputs.jsonl").read_text("utf-8").splitlines()]


def stem(path: Path) -> str:
    return path.stem


def message(**fields: Any) -> str:
    return json.dumps({"type": "user_message", "client_msg_id": "m-1", "content": "x", **fields})


def data_of(case: dict[str, Any]) -> bytes | str:
    """The WebSocket message that a row of the table describes."""
    if "text" in case:
        return str(case["text"])
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    if "parts_hex" in case:
        return b"".join(bytes.fromhex(part) * times for part, times in case["parts_hex"])
    return "".join(part * times for part, times in case["parts"])


# --- golden frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLIENT_FILES, ids=stem)
def test_client_golden_round_trip(path: Path) -> None:
    """A client's golden frame decodes, and encodes to the same bytes, as text and as binary."""
    line = path.read_bytes().removesuffix(b"\n")
    frame = decode(line, limits=LIMITS)
    assert frame == decode(line.decode(), limits=LIMITS)
    assert encode(frame) == line
    assert decode(encode(frame, msgpack=True), limits=LIMITS, msgpack=True) == frame
    assert json_to_msgpack(line) == encode(frame, msgpack=True)


@pytest.mark.parametrize("path", SERVER_FILES, ids=stem)
def test_server_golden_round_trip(path: Path) -> None:
    """A server's golden frame decodes, and encodes to the same bytes."""
    line = path.read_bytes().removesuffix(b"\n")
    frame = decode_server(line)
    assert encode(frame) == line
    assert decode_server(json_to_msgpack(line), msgpack=True) == frame


@pytest.mark.parametrize(
    ("files", "kinds"), [(CLIENT_FILES, CLIENT_FRAMES), (SERVER_FILES, SERVER_FRAMES)], ids=["client", "server"]
)
def test_golden_files_cover_every_frame(files: list[Path], kinds: dict[str, Any]) -> None:
    """Each frame type has a golden file, named after it, and no file has another type."""
    types = {json.loads(path.read_bytes())["type"] for path in files}
    assert types == set(kinds)
    for path in files:
        assert path.name.split(".")[1] == json.loads(path.read_bytes())["type"]


@pytest.mark.parametrize("path", ORIGINAL_FILES, ids=stem)
@pytest.mark.parametrize("as_binary", [False, True], ids=["text", "binary"])
def test_original_golden_meaning(path: Path, as_binary: bool) -> None:
    """A frame of the original design, byte for byte, means the user_message beside it."""
    case = json.loads(path.read_bytes())
    received = case["received"].encode() if as_binary else case["received"]
    frame = decode(received, limits=LIMITS, compat=msgspec.convert(case["path"], CompatContext))
    assert msgspec.to_builtins(frame) == case["means"]


# --- bad inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['input']}")
def test_bad_inputs(case: dict[str, Any]) -> None:
    """Each row of the table of inputs ends as the row says: in a frame, or in a code, a detail and a strike."""
    mode = case.get("mode", "v1")
    kwargs: dict[str, Any] = {"compat": PATH if mode == "compat" else None, "msgpack": mode == "msgpack"}
    if "type" in case:
        frame = decode(data_of(case), limits=LIMITS, **kwargs)
        assert frame.__struct_config__.tag == case["type"]
        for name, value in case.get("field", {}).items():
            assert getattr(frame, name) == value
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data_of(case), limits=LIMITS, **kwargs)
    error = caught.value
    assert (error.code, error.detail, error.strike) == (case["code"], case.get("detail"), case.get("strike", False))
    if "client_msg_id" in case:
        assert error.client_msg_id == case["client_msg_id"]
    assert error.close is None


def test_bad_inputs_ids() -> None:
    """The table is long, and each row has a name of its own."""
    assert len({case["id"] for case in CASES}) == len(CASES) >= 200


# --- any bytes ----------------------------------------------------------------------------------------------

PATH_PATTERN = rf"(?:frame|(?:{'|'.join(FIELD_NAMES)}|\[\])(?:\.(?:{'|'.join(FIELD_NAMES)})|\[\])*)"
SENTENCES = (
    *(rule for rule, _ in text.REFUSED),
    text.LINE_BREAKS,
    *(rule for _, rule in codec._RULES),
    codec.EMPTY,
    codec.TOO_LONG,
    codec.NOT_A_TIME,
    codec.NUMBER_TOO_LARGE,
    codec.TWO_SPELLINGS,
    "not allowed",
    *(
        constant.partition(": ")[2]
        for constant in (
            codec.NOT_A_DOCUMENT,
            codec.NOT_AN_OBJECT,
            codec.TOO_DEEP,
            codec.CANCEL_WHAT,
            codec.ONE_TARGET,
        )
    ),
)
OURS = re.compile(
    PATH_PATTERN
    + ": (?:"
    + "|".join(
        re.escape(sentence).replace(r"\{0\}", "[<>]=").replace(r"\{1\}", r"\d{1,4}").replace(r"\{\}", r"\d{1,4}")
        for sentence in SENTENCES
    )
    + r")"
)


def assert_total(data: bytes | str, **kwargs: Any) -> None:
    """``decode`` returns a frame, or raises an error whose words are all ours."""
    refusal: RemoteProtocolError | None = None
    try:
        frame = decode(data, limits=LIMITS, **kwargs)
    except RemoteProtocolError as error:
        refusal = error
    if refusal is None:
        assert decode(encode(frame), limits=LIMITS) == frame
        assert decode(encode(frame, msgpack=True), limits=LIMITS, msgpack=True) == frame
        assert not isinstance(frame, Ping) or encode(Pong(t=frame.t))
        return
    assert refusal.code in (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED_TYPE)
    assert refusal.detail is None or OURS.fullmatch(refusal.detail), refusal.detail
    assert refusal.__cause__ is None
    assert refusal.__suppress_context__ or refusal.__context__ is None


MODES = st.sampled_from([{}, {"compat": PATH}, {"msgpack": True}])

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(sorted(FIELD_NAMES)) | st.text(max_size=5),
    JSON_VALUES | st.sampled_from(["m-1", "7823", "stat", "app", "x" * 4001, "\x1b", "\u202e", "\ud800", "2026-01-15"]),
    max_size=6,
)


@given(st.binary(max_size=200), MODES)
@example(b'{"type":"hello","channel":"x - at `$.token`"}', {})
def test_decode_any_bytes(data: bytes, mode: dict[str, Any]) -> None:
    """Any bytes are a frame or an error in our own words."""
    assert_total(data, **mode)


@given(st.text(max_size=200) | st.text('{}[]":,\\\\ntrue0type', max_size=60), MODES)
def test_decode_any_text(data: str, mode: dict[str, Any]) -> None:
    """Any text, lone surrogates too, is a frame or an error in our own words."""
    assert_total(data, **mode)


@given(st.sampled_from([*CLIENT_FRAMES, "x", None]), FIELDS, MODES)
def test_decode_any_fields(tag: str | None, fields: dict[str, Any], mode: dict[str, Any]) -> None:
    """Known fields with any values are a frame or an error in our own words, as JSON and as MessagePack."""
    raw = {**fields, "type": tag} if tag else fields
    assert_total(json.dumps(raw), **mode)
    try:
        packed = msgspec.msgpack.encode(raw)
    except (OverflowError, UnicodeEncodeError):
        return
    assert_total(packed, msgpack=True)


@given(st.sampled_from(CLIENT_FILES + SERVER_FILES), st.data())
def test_decode_mutated_golden(path: Path, data: st.DataObject) -> None:
    """A golden frame with some bytes changed, cut or doubled is a frame or an error in our own words."""
    line = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not line:
            break
    assert_total(bytes(line))
    assert_total(bytes(line), compat=PATH)


SECRET = "Zacarias-4711-Ümlaut"


@given(st.sampled_from(sorted(FIELD_NAMES)), st.sampled_from([*CLIENT_FRAMES, "no_such_type"]), MODES)
def test_decode_error_never_echoes(name: str, tag: str, mode: dict[str, Any]) -> None:
    """No error holds any four characters of what a field held, whatever the field and the frame."""
    for value in (SECRET, {SECRET: SECRET}, [SECRET], SECRET * 300, f"{SECRET}\x1b", f"{SECRET} - at `$.{SECRET}`"):
        try:
            decode(json.dumps({"type": tag, name: value, SECRET: SECRET}), limits=LIMITS, **mode)
        except RemoteProtocolError as error:
            said = f"{error} {error.args} {error.detail} {error.client_msg_id}"
            assert not [SECRET[i : i + 4] for i in range(len(SECRET) - 3) if SECRET[i : i + 4] in said]


@given(
    st.recursive(
        st.sampled_from(["", '"]"', '"{[\\""', "1"]),
        lambda inner: st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: "[" + ",".join(part or "0" for part in parts) + "]"
        ),
        max_leaves=40,
    )
)
def test_depth_scan_equals_depth(value: str) -> None:
    """The scan without building agrees with the depth of what is built, for well-formed JSON of any shape."""
    document = f'{{"type":"ping","x":{value or 0}}}'

    def depth(built: Any) -> int:
        if isinstance(built, dict):
            return 1 + max(map(depth, built.values()), default=0)
        return 1 + max(map(depth, built), default=0) if isinstance(built, list) else 0

    for limit in range(1, 12):
        assert codec._is_deeper(document.encode(), limit) == (depth(json.loads(document)) > limit)


# --- rules of their own -------------------------------------------------------------------------------------


def test_decode_content_is_trimmed_only() -> None:
    """Content is used as it was checked: without the space around it, and with nothing else changed."""
    frame = decode(message(content=" \n Joa\u0303o:\t25 µg \n"), limits=LIMITS)
    assert isinstance(frame, UserMessage)
    assert frame.content == "Joa\u0303o:\t25 µg"


def test_compat_ids_tell_messages_apart() -> None:
    """The compat id is equal for a resend and differs by user, session, timestamp and content, not by patient."""

    def id_of(path: CompatContext = PATH, **fields: Any) -> str:
        raw = {"content": "x", "timestamp": "2026-01-15T07:45:20Z", **fields}
        frame = decode(json.dumps(raw), limits=LIMITS, compat=path)
        assert isinstance(frame, UserMessage)
        return frame.client_msg_id

    other_frame = msgspec.structs.replace(PATH, frame_id="c-1:2")
    assert id_of() == id_of() == id_of(other_frame) == id_of(patient_id="7823")
    different = [
        id_of(),
        id_of(content="y"),
        id_of(timestamp="2026-01-15T07:45:21Z"),
        id_of(session_id="sess_2"),
        id_of(user_id="dr.costa"),
        id_of(timestamp=None),
        id_of(other_frame, timestamp=None),
        id_of(timestamp=790_000_000),
    ]
    assert len(set(different)) == len(different)
    assert all(re.fullmatch(r"compat-[0-9a-f]{32}", each) for each in different)


def server(name: str) -> ServerFrame:
    return decode_server((GOLDEN / f"server.{name}.json").read_bytes())


@pytest.mark.parametrize("path", SERVER_FILES, ids=stem)
@pytest.mark.parametrize("mode", ["json", "text"])
def test_compat_encode_types(path: Path, mode: codec.CompatMode) -> None:
    """A client of the original design gets ai_response and system_notification, and a pong to its own ping."""
    frame = decode_server(path.read_bytes())
    data = compat_encode(frame, mode)
    if isinstance(frame, AiResponse | SystemNotification | Error | Pong):
        assert data is not None
        raw = json.loads(data)
        assert raw["type"] in ("ai_response", "system_notification", "pong")
        if raw["type"] == "ai_response":
            assert isinstance(raw["content"], str if mode == "text" else dict)
    else:
        assert data is None


@pytest.mark.parametrize(
    ("name", "mode", "golden"),
    [
        ("ai_response", "text", "answer.text"),
        ("error", "json", "answer.error"),
        ("error", "text", "answer.error.text"),
    ],
)
def test_compat_encode_golden(name: str, mode: codec.CompatMode, golden: str) -> None:
    """What the original design's clients get is the golden file, byte for byte."""
    assert compat_encode(server(name), mode) == (GOLDEN / "original" / golden).read_bytes().removesuffix(b"\n")


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("lang", ["en", "pt-PT"])
def test_compat_encode_error_text(code: ErrorCode, lang: str) -> None:
    """A refused question is seen by a client of the original design, in words and with the status failed."""
    frame = Error(code=code.value, message="", retryable=ERRORS[code].retryable, detail="content: must not be empty")
    raw = json.loads(compat_encode(frame, "text", lang=lang) or b"")
    expected = ERRORS[code].pt if lang == "pt-PT" else ERRORS[code].en
    assert raw["content"] == f"{expected} (content: must not be empty)"
    assert (raw["type"], raw["status"], raw["finish_reason"]) == ("ai_response", "failed", code.value)


@pytest.mark.parametrize("path", SERVER_FILES, ids=stem)
def test_with_position_equals_encoding(path: Path) -> None:
    """A durable frame that is given its place as bytes equals the frame encoded with its place."""
    frame = decode_server(path.read_bytes())
    if not isinstance(frame, SESSION_DURABLE):
        with pytest.raises(LocalProtocolError):
            with_position(encode(frame), "e-91c", 7)
        return
    stored = encode(msgspec.structs.replace(frame, epoch="", seq=0))
    placed = msgspec.structs.replace(frame, epoch="e-7.A_b", seq=12_345_678_901)
    assert with_position(stored, "e-7.A_b", 12_345_678_901) == encode(placed)


@pytest.mark.parametrize(("epoch", "seq"), [("", 1), ('e"', 1), ("e\n", 1), ("e", 0), ("e" * 65, 1), ("é", 1)])
def test_with_position_refuses(epoch: str, seq: int) -> None:
    """A place that is none is refused, as is a frame that has one already."""
    stored = encode(msgspec.structs.replace(server("stale"), epoch="", seq=0))
    with pytest.raises(LocalProtocolError):
        with_position(stored, epoch, seq)
    with pytest.raises(LocalProtocolError):
        with_position(with_position(stored, "e-1", 1), "e-1", 2)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type":[]}', b'{"type":"stale"}', b"\xff"])
def test_decode_server_refuses(data: bytes) -> None:
    """What is no frame of a server is bad_request to the client that got it."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode_server(data)
    assert caught.value.code == ErrorCode.BAD_REQUEST


def test_decode_server_newer() -> None:
    """A newer server's frame is told apart from a broken one, and a newer field is ignored."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode_server(b'{"type":"hologram"}')
    assert caught.value.code == ErrorCode.UNSUPPORTED_TYPE
    assert decode_server(b'{"type":"pong","t":1,"colour":"blue"}') == Pong(t=1)
