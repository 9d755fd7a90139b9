"""Bytes to frame and back: size, depth, decoding, type, fields, in this order.

What was checked is what is used: the bytes are decoded once, to plain objects in which a repeated key has one
meaning (the last), and the frame is made of those objects. Whatever a client sends, ``decode`` returns a frame or
raises ``RemoteProtocolError``, whose ``detail`` is put together from the names of our fields and the sentences of
our rules alone.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, cast, get_args

import msgspec
from msgspec.structs import replace

from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError, error_text
from .frames import (
    AiResponse,
    AlertRaise,
    Cancel,
    ClientFrame,
    Content,
    Error,
    Frame,
    Id,
    Pong,
    PresenceSet,
    ServerFrame,
    StructuredData,
    SystemNotification,
    UserMessage,
)
from .text import parse_time, refused

CompatMode = Literal["json", "text"]


class CodecLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a client may send at once.

    ``max_bytes``: of one frame. ``max_depth``: objects and lists within each other, the frame itself is 1.
    ``max_content_chars``: code points of ``content`` after trimming.
    """

    max_bytes: int = 65_536
    max_depth: int = 8
    max_content_chars: int = 4_000


class CompatContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection of the original design says by its path instead of in its frames.

    ``frame_id``: differs for every frame the server ever receives (connection and count). It stands in for a
    missing ``timestamp``, so that a question asked again later is a new question and not an old answer.
    """

    user_id: str
    department: str
    session_id: str | None = None
    frame_id: str = ""


CLIENT_FRAMES: Final[Mapping[str, type[Frame]]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(ClientFrame)
}
SERVER_FRAMES: Final[Mapping[str, type[Frame]]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(ServerFrame)
}

# What both JSON's readers and msgpack's can hold: the largest whole number a double keeps exactly.
MAX_INTEGER: Final = 2**53 - 1

#: Fields in which people write prose; newline and tab may pass there.
PROSE: Final = frozenset({"content", "reason", "text"})

NOT_A_DOCUMENT: Final = "frame: not exactly one well-formed document"
NOT_AN_OBJECT: Final = "frame: must be an object"
TOO_DEEP: Final = "frame: nested too deep, or brackets do not match"
TYPE_REQUIRED: Final = "type: required"
TYPE_NOT_TEXT: Final = "type: wrong type"
EMPTY: Final = "must not be empty"
TOO_LONG: Final = "longer than {} characters"
NOT_A_TIME: Final = "must be a time as in RFC 3339, between the years 2000 and 2100"
NUMBER_TOO_LARGE: Final = "number out of range"
CANCEL_WHAT: Final = "client_msg_id: required, or response_id"
ONE_TARGET: Final = "to: exactly one of department, role, user"
TWO_SPELLINGS: Final = "given twice with different values"


# --- decoding -----------------------------------------------------------------------------------------------


def decode(
    data: bytes | str,
    *,
    limits: CodecLimits,
    compat: CompatContext | None = None,
    msgpack: bool = False,
) -> ClientFrame:
    """Read one frame of a client.

    Pure and total: equal bytes give an equal frame or an equal error, every time.

    Args:
        data: A WebSocket message; text and binary both carry JSON.
        limits: Bounds on its size, its depth and its content.
        compat: Set for a connection of the original design; a frame without ``type`` is then a ``user_message``.
        msgpack: The subprotocol is ``chatd.v1.msgpack``: binary messages are MessagePack, text stays JSON.
    Raises:
        RemoteProtocolError: ``too_large``, ``unsupported_type`` or ``bad_request``. With ``strike`` if not even an
            object could be read; with ``client_msg_id`` if one could.
    """
    raw = _document(data, limits, msgpack=msgpack)
    client_msg_id = _client_msg_id(raw)
    try:
        return _frame(raw, limits, compat)
    except RemoteProtocolError as error:
        error.client_msg_id = client_msg_id
        raise


_SERVER_JSON: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)
_SERVER_MSGPACK: msgspec.msgpack.Decoder[ServerFrame] = msgspec.msgpack.Decoder(ServerFrame)


def decode_server(data: bytes | str, *, msgpack: bool = False) -> ServerFrame:
    """Read one frame of the server: for clients, and for frames that wait in a log.

    Raises:
        RemoteProtocolError: ``unsupported_type`` for a newer server's frame, which a client skips;
            ``bad_request`` for anything else.
    """
    is_msgpack = msgpack and isinstance(data, bytes)
    try:
        # In one go, without the dictionaries between: each durable frame passes here for each phone.
        return _SERVER_MSGPACK.decode(cast(bytes, data)) if is_msgpack else _SERVER_JSON.decode(data)
    except (ValueError, RecursionError):
        pass
    try:
        raw = msgspec.msgpack.decode(cast(bytes, data)) if is_msgpack else msgspec.json.decode(data)
        kind = SERVER_FRAMES.get(raw["type"])
        if kind is None:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED_TYPE)
        return cast(ServerFrame, msgspec.convert(raw, kind))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, NOT_A_DOCUMENT, strike=True) from None


def _document(data: bytes | str, limits: CodecLimits, *, msgpack: bool) -> dict[str, Any]:
    """The object that ``data`` holds; every value in it is what JSON can say."""
    is_msgpack = msgpack and isinstance(data, bytes)
    try:
        encoded = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError:
        raise _garbage(NOT_A_DOCUMENT) from None
    if len(encoded) > limits.max_bytes:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, strike=True)
    if is_msgpack:
        _check_msgpack(encoded, limits.max_depth)
    elif _is_deeper(encoded, limits.max_depth):
        raise _garbage(TOO_DEEP)
    try:
        raw = msgspec.msgpack.decode(encoded) if is_msgpack else msgspec.json.decode(encoded)
    except (ValueError, TypeError, RecursionError):
        # Not the cause's text: msgspec quotes what it read.
        raise _garbage(NOT_A_DOCUMENT) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise _garbage(NOT_AN_OBJECT)
    return raw


def _garbage(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.BAD_REQUEST, detail, strike=True)


# The closing quote is optional, so that a string without end is one match too: otherwise each escaped quote in it
# would start a search of its own, and 64 KiB of them take minutes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ROUND = bytes.maketrans(b"{}", b"[]")


def _is_deeper(encoded: bytes, max_depth: int) -> bool:
    """Whether JSON nests deeper than ``max_depth``; nothing is built, and text without JSON may say either."""
    if encoded.count(b"[") + encoded.count(b"{") <= max_depth:
        return False
    brackets = _STRING.sub(b"", encoded).translate(_ROUND, _NOT_BRACKETS)
    for _ in range(max_depth):  # each turn takes the innermost level away
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


# MessagePack's first byte -> bytes that follow (numbers), or bytes of the length that follows (texts, containers).
# Source: the msgpack specification's table of formats. Binary and extension types are left out: JSON has none.
_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {0xCC + n: 1 << (n % 4) for n in range(8)}
_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}
# The walk below takes about half a microsecond an item and runs on the event loop; no frame has a hundred items.
_MAX_ITEMS: Final = 16_384


def _check_msgpack(encoded: bytes, max_depth: int) -> None:
    """Walk over the headers of one MessagePack document; nothing is built.

    Refuses depth, a length beyond the end (a list of four thousand million in five bytes), NaN and infinities,
    binary and extension types, and anything after the first document.
    """
    end, position, budget = len(encoded), 0, _MAX_ITEMS
    open_items = [1]  # how many items each open container still expects; the document itself is the first
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        if position >= end:
            raise _garbage(NOT_A_DOCUMENT)
        head = encoded[position]
        position += 1
        items = None
        if head < 0x80 or head >= 0xE0:
            continue
        if head < 0x90:
            items = 2 * (head & 0x0F)
        elif head < 0xA0:
            items = head & 0x0F
        elif head < 0xC0:
            position += head & 0x1F
        elif head in _FIXED:
            size = _FIXED[head]
            if head in (0xCA, 0xCB) and position + size <= end:
                (number,) = struct.unpack_from(">f" if size == 4 else ">d", encoded, position)
                if not math.isfinite(number):
                    raise _garbage(NOT_A_DOCUMENT)
            position += size
        elif (size := _TEXTS.get(head) or _LISTS.get(head) or _MAPS.get(head) or 0) and position + size <= end:
            length = int.from_bytes(encoded[position : position + size], "big")
            position += size
            if head in _TEXTS:
                position += length
            else:
                items = 2 * length if head in _MAPS else length
        else:
            raise _garbage(NOT_A_DOCUMENT)
        if items is not None:
            if len(open_items) > max_depth:
                raise _garbage(TOO_DEEP)
            budget -= items
            if budget < 0:
                raise _garbage(NOT_A_DOCUMENT)
            open_items.append(items)
    if position != end:
        raise _garbage(NOT_A_DOCUMENT)


def _client_msg_id(raw: Mapping[str, Any]) -> str | None:
    """The client's id if it is one, also of a frame that is otherwise wrong; nothing else of it is ever echoed."""
    try:
        return msgspec.convert(raw.get("client_msg_id"), Id)
    except msgspec.ValidationError:
        return None


def _frame(raw: dict[str, Any], limits: CodecLimits, compat: CompatContext | None) -> ClientFrame:
    tag = raw.get("type")
    if compat is not None and tag in (None, "user_message"):
        return _original_message(raw, limits, compat)
    if tag is None:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, TYPE_REQUIRED)
    if not isinstance(tag, str):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, TYPE_NOT_TEXT)
    kind = CLIENT_FRAMES.get(tag)
    if kind is None:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED_TYPE)
    return _checked(_converted(raw, kind), limits)


def _converted(raw: dict[str, Any], kind: type[Frame]) -> Frame:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, _detail(str(error))) from None


def _checked(frame: Frame, limits: CodecLimits) -> ClientFrame:
    """``frame`` with its content trimmed, after the rules that a type cannot express."""
    for path, value in _leaves(frame):
        if isinstance(value, str):
            rule = refused(value, multiline=path in PROSE)
            if rule is not None:
                raise _bad(path, rule)
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise _bad(path, NUMBER_TOO_LARGE)
    match frame:
        case UserMessage() | AlertRaise():
            content = frame.content.strip()
            if not content:
                raise _bad("content", EMPTY)
            if len(content) > limits.max_content_chars:
                raise _bad("content", TOO_LONG.format(limits.max_content_chars))
            if isinstance(frame, UserMessage) and frame.timestamp is not None:
                _require_time("timestamp", frame.timestamp)
            if isinstance(frame, AlertRaise):
                named = [each for each in (frame.to.department, frame.to.role, frame.to.user) if each is not None]
                if len(named) != 1:
                    raise RemoteProtocolError(ErrorCode.BAD_REQUEST, ONE_TARGET)
            frame = replace(frame, content=content)
        case Cancel(client_msg_id=None, response_id=None):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, CANCEL_WHAT)
        case PresenceSet(until=str(until)):
            _require_time("until", until)
        case _:
            pass
    return cast(ClientFrame, frame)


def _leaves(value: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each scalar of a frame with its path, as ``resume.seq``: a field that is added later is checked too."""
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if isinstance(item, msgspec.Struct):
            yield from _leaves(item, f"{prefix}{name}.")
        elif isinstance(item, tuple):
            for each in item:
                yield f"{prefix}{name}[]", each
        else:
            yield f"{prefix}{name}", item


def _bad(path: str, rule: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.BAD_REQUEST, f"{path}: {rule}")


def _require_time(path: str, text: str) -> None:
    if parse_time(text) is None:
        raise _bad(path, NOT_A_TIME)


# --- why msgspec refused, in our words ----------------------------------------------------------------------

_AT = re.compile(r" - at `[^`]*`(?: in `[^`]*`)?\Z")
_PATH = re.compile(r"\$((?:\.\w+|\[[^\]]*\])*)`\Z", re.ASCII)
#: How msgspec's messages begin -> our rule. Only groups that hold our own limits are copied out of a message.
_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"Object missing required field"), "required"),
    (re.compile(r"Invalid enum value"), "not one of the allowed values"),
    (re.compile(r"Expected `\w+` of length (>=|<=) (\d+)"), "length must be {0} {1}"),
    (re.compile(r"Expected `\w+` matching regex"), "must be an id: letters, digits and . _ : @ + -"),
    (re.compile(r"Expected `\w+` (>=|<=) (\d+)"), "must be {0} {1}"),
    (re.compile(r"Expected "), "wrong type"),
)
_MISSING = re.compile(r"Object missing required field `(\w+)`", re.ASCII)


def _field_names(kind: type[msgspec.Struct]) -> set[str]:
    """The wire's names of a frame's fields and of those of its parts."""
    names: set[str] = set()
    for field in msgspec.structs.fields(kind):
        names.add(field.encode_name)
        for part in (field.type, *get_args(field.type)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                names |= _field_names(part)
    return names


FIELD_NAMES: Final = frozenset({"type"}).union(*(_field_names(kind) for kind in CLIENT_FRAMES.values()))


def _detail(message: str) -> str:
    """``path: rule`` for a message of msgspec's, which may quote input before its last " - at "."""
    at = _AT.search(message)
    path = _PATH.search(at[0]) if at else None
    steps = re.findall(r"\w+|\[", path[1]) if path else []
    names = [step if step in FIELD_NAMES else "[]" for step in steps if not step.isdigit()]
    missing = _MISSING.match(message)
    if missing and missing[1] in FIELD_NAMES:
        names.append(missing[1])
    for pattern, rule in _RULES:
        match = pattern.match(message)
        if match:
            return f"{'.'.join(names).replace('.[]', '[]') or 'frame'}: {rule.format(*match.groups())}"
    return f"{'.'.join(names).replace('.[]', '[]') or 'frame'}: not allowed"


# --- clients of the original design -------------------------------------------------------------------------

_ORIGINAL_FIELDS: Final = ("user_id", "department", "patient_id", "content", "timestamp", "session_id")
#: A Swift ``JSONEncoder`` without a key strategy writes property names as they stand. A patient's id that was
#: skipped for its spelling would answer a question about nobody.
_SPELLINGS: Final = {"userId": "user_id", "patientId": "patient_id", "sessionId": "session_id"}


def _original_message(raw: dict[str, Any], limits: CodecLimits, compat: CompatContext) -> UserMessage:
    """A question in the original design's form; all that it does not know is left at its default."""
    named: dict[str, Any] = {}
    for name in (*_ORIGINAL_FIELDS, *_SPELLINGS):
        value = raw.get(name)
        canonical = _SPELLINGS.get(name, name)
        if value is None or (value == "" and canonical != "content"):
            continue
        if canonical in named and named[canonical] != value:
            raise _bad(canonical, TWO_SPELLINGS)
        named[canonical] = value
    timestamp = named.pop("timestamp", None)
    if isinstance(timestamp, str):
        moment = parse_time(timestamp, original=True)
        if moment is None:
            raise _bad("timestamp", NOT_A_TIME)
        named["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    elif isinstance(timestamp, bool) or not isinstance(timestamp, int | float | None):
        raise _bad("timestamp", "wrong type")
    elif timestamp is not None and not 0 <= timestamp < 4_200_000_000_000:
        # Seconds since 1970 or, by Swift's default, since 2001, or milliseconds: which one cannot be told, so it
        # only tells messages apart. The bound is the year 2100 in milliseconds.
        raise _bad("timestamp", NOT_A_TIME)
    client_msg_id = _client_msg_id(raw)
    defaults = {"user_id": compat.user_id, "department": compat.department}
    if compat.session_id is not None:
        defaults["session_id"] = compat.session_id
    frame = _checked(
        _converted(
            {**defaults, **named, "type": "user_message", "client_msg_id": client_msg_id or "compat"},
            UserMessage,
        ),
        limits,
    )
    assert isinstance(frame, UserMessage)  # noqa: S101 - tells mypy what _converted was asked for
    if client_msg_id is None:
        frame = replace(frame, client_msg_id=_digest_id(frame, timestamp, compat.frame_id))
    return frame


def _digest_id(frame: UserMessage, timestamp: str | float | None, frame_id: str) -> str:
    """``compat-`` and a digest of user, session, timestamp and content: the same message has the same id.

    Without a timestamp the digest holds ``frame_id`` instead. The patient is not in it: the same message with
    another patient must meet the rule "same id, another body" and be refused.
    """
    when = ["undated", frame_id] if timestamp is None else ["dated", timestamp]
    parts = msgspec.json.encode([frame.user_id, frame.session_id, when, frame.content])
    return f"compat-{hashlib.sha256(parts).hexdigest()[:32]}"


def compat_encode(frame: ServerFrame, mode: CompatMode, *, lang: str = "en") -> bytes | None:
    """What a client of the original design gets for ``frame``; None: nothing.

    ``ai_response`` and ``system_notification`` go out as they are. An ``error`` goes out as an ``ai_response`` with
    status ``failed``, because a refused question must be seen and the original design has no other frame to show
    it in. ``pong`` goes out too: it only ever answers a ``ping`` that this client sent as JSON.

    Args:
        frame: Any frame of the server.
        mode: "text" (``?compat=text``): ``content`` of an ``ai_response`` is its text alone.
        lang: Of the text for an error whose own message is empty.
    """
    if isinstance(frame, Error):
        frame = _error_as_response(frame, lang)
    if isinstance(frame, AiResponse) and mode == "text":
        return msgspec.json.encode({**msgspec.to_builtins(frame), "content": frame.content.text})
    if isinstance(frame, AiResponse | SystemNotification | Pong):
        return encode(frame)
    return None


def _error_as_response(error: Error, lang: str) -> AiResponse:
    text = error.message or error_text(ErrorCode(error.code), lang)
    if error.detail:
        text = f"{text} ({error.detail})"
    return AiResponse(
        response_id=f"err_{error.client_msg_id or error.code}",
        content=Content(text=text, structured_data=StructuredData(headline=text[:140])),
        processing_time_ms=0,
        status="failed",
        finish_reason=error.code,
        client_msg_id=error.client_msg_id,
        response_type="error",
    )


# --- encoding -----------------------------------------------------------------------------------------------

_JSON = msgspec.json.Encoder()
_MSGPACK = msgspec.msgpack.Encoder()
_NO_POSITION: Final = b',"epoch":"","seq":0}'
_EPOCH = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z", re.ASCII)


def encode(frame: Frame, *, msgpack: bool = False) -> bytes:
    """One frame as compact JSON in UTF-8, or as MessagePack; fields in the order of the Struct."""
    return _MSGPACK.encode(frame) if msgpack else _JSON.encode(frame)


def with_position(stored: bytes, epoch: str, seq: int) -> bytes:
    """A durable frame out of the session's log, with its place in that log.

    The log holds ``encode(frame)`` without a place, because the place is only known once it is appended. ``epoch``
    and ``seq`` are the last fields of every durable frame, so the tail is exchanged and nothing is decoded.

    Raises:
        LocalProtocolError: ``stored`` is no encoded frame without a position, or the position is none.
    """
    if not stored.endswith(_NO_POSITION) or not _EPOCH.match(epoch) or seq < 1:
        raise LocalProtocolError("with_position: not a durable frame without a position")
    return b'%b,"epoch":"%b","seq":%d}' % (stored[: -len(_NO_POSITION)], epoch.encode(), seq)


def json_to_msgpack(data: bytes) -> bytes:
    """A frame encoded as JSON, encoded as MessagePack: for frames that were encoded once for all readers."""
    return _MSGPACK.encode(msgspec.json.decode(data))
