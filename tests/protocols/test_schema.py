"""The printed schemas say what the frames say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from protocols.codec import CLIENT_FRAMES, SERVER_FRAMES
from protocols.errors import CloseCode, ErrorCode
from protocols.schema import asyncapi, json_schema, main

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
KNOWN = {
    *("$ref", "anyOf", "oneOf", "type", "enum", "properties", "required", "items", "prefixItems"),
    *("additionalProperties", "minLength", "maxLength", "pattern", "minimum", "maximum", "maxItems", "minItems"),
    *("title", "description", "default", "$schema", "$id", "$defs"),
}


def ecma(pattern: str) -> str:
    """ECMAScript's ``$`` is the end of the text, Python's also the place before a last newline."""
    return pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether ``value`` is valid, for the part of JSON Schema that these schemas use; any other keyword fails."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return is_valid(value, target, root)
    if "anyOf" in schema and not any(is_valid(value, each, root) for each in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(is_valid(value, each, root) for each in schema["oneOf"]) != 1:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "type" in schema:
        kind = schema["type"]
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            return False
    if isinstance(value, str):
        return (
            len(value) >= schema.get("minLength", 0)
            and len(value) <= schema.get("maxLength", len(value))
            and ("pattern" not in schema or re.search(ecma(schema["pattern"]), value) is not None)
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        return len(value) <= schema.get("maxItems", len(value)) and all(
            is_valid(each, schema.get("items", {}), root) for each in value
        )
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            is_valid(each, properties.get(name, others), root) for name, each in value.items()
        )
    return True


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_frames_are_valid(path: Path) -> None:
    """A golden frame is valid for its side's schema, for its own, and for no other side that lacks its type."""
    frame, root = json.loads(path.read_bytes()), json_schema()
    side = "ClientFrame" if path.name.startswith("client.") else "ServerFrame"
    kinds = CLIENT_FRAMES if side == "ClientFrame" else SERVER_FRAMES
    assert is_valid(frame, root, root)
    assert is_valid(frame, root["$defs"][side], root)
    assert is_valid(frame, root["$defs"][kinds[frame["type"]].__name__], root)
    other = "ServerFrame" if side == "ClientFrame" else "ClientFrame"
    if frame["type"] != "presence":
        assert not is_valid(frame, root["$defs"][other], root)


FIELD_CASES = [
    case
    for case in map(json.loads, (HERE / "bad_inputs.jsonl").read_text("utf-8").splitlines())
    if case["id"].startswith(("id-", "field-")) and "text" in case and "code" in case
]
#: What a schema cannot hold, and SPEC.md says.
BEYOND = re.compile(
    r"^t: number out of range|exactly one of|required, or|must be a time|direction of text"
    r"|control char|line breaks|not be empty"
)


@pytest.mark.parametrize("case", FIELD_CASES, ids=lambda case: f"{case['id']} {case['input']}")
def test_bad_fields_are_invalid(case: dict[str, Any]) -> None:
    """What the codec refuses for its fields, the schema refuses, but for the rules that it cannot hold."""
    root = json_schema()
    assert is_valid(json.loads(case["text"]), root["$defs"]["ClientFrame"], root) == bool(BEYOND.search(case["detail"]))


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("document", [json_schema(), asyncapi()], ids=["json", "asyncapi"])
def test_documents_are_closed(document: dict[str, Any]) -> None:
    """Every reference leads to something, the document is plain JSON, and no pattern is Python's alone."""
    for reference in references(document):
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert "\\\\Z" not in json.dumps(document)


def test_asyncapi_structure() -> None:
    """The document has AsyncAPI 3.0's required parts, and both operations name every frame of their side."""
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    channel = document["channels"]["chat"]
    assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"])
    for operation, action, kinds, side in (
        ("fromClient", "receive", CLIENT_FRAMES, "Client"),
        ("toClient", "send", SERVER_FRAMES, "Server"),
    ):
        told = document["operations"][operation]
        assert told["action"] == action
        assert [each["$ref"] for each in told["messages"]] == [
            f"#/channels/chat/messages/{side}.{tag}" for tag in kinds
        ]
    assert set(channel["messages"]) == set(document["components"]["messages"])
    assert all(re.fullmatch(r"[\w.-]+", name) for part in document["components"].values() for name in part)
    durable = {
        name: message["x-durable"]
        for name, message in document["components"]["messages"].items()
        if "x-durable" in message
    }
    assert durable["Server.ai_response"] == "seq"
    assert durable["Server.system_notification"] == "alert_seq"
    assert set(document["x-error-codes"]) == {code.value for code in ErrorCode}
    assert set(document["x-close-codes"]) == {str(code.value) for code in CloseCode}


@pytest.mark.parametrize(("arguments", "key"), [([], "asyncapi"), (["asyncapi"], "asyncapi"), (["json"], "$defs")])
def test_main_prints(arguments: list[str], key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints one document as JSON."""
    assert main(arguments) == 0
    assert key in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["yaml"], ["json", "asyncapi"]])
def test_main_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Another word is refused with a usage line and 2."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage")
