"""JSON Schema and AsyncAPI of ``chatd.v1``, made of the frames and the tables of codes.

``python -m protocols.schema [json|asyncapi]`` prints one of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from .codec import CLIENT_FRAMES, MAX_INTEGER, SERVER_FRAMES, CodecLimits
from .errors import CLOSE_REASONS, ERRORS
from .frames import ALERT_DURABLE, PROTOCOL, PROTOCOL_MSGPACK, RATE_EXEMPT, SESSION_DURABLE, VERSION, Frame

JSON_SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI_VERSION: Final = "3.0.0"

_TITLE: Final = "chatd"
_DESCRIPTION: Final = (
    "Questions about patients and alerts for hospital departments over one WebSocket per device. "
    "What the fields mean together is told in SPEC.md."
)


def json_schema() -> dict[str, Any]:
    """All frames as one JSON Schema (draft 2020-12).

    A document is valid if it is any frame; ``#/$defs/ClientFrame`` and ``#/$defs/ServerFrame`` tell the two ways
    apart, and each frame and part stands under its own name. Rules that a schema cannot hold (which characters
    may pass, one target of an alert) are in SPEC.md alone.
    """
    definitions = _definitions("#/$defs/{name}")
    for name, kinds in (("ClientFrame", CLIENT_FRAMES.values()), ("ServerFrame", SERVER_FRAMES.values())):
        definitions[name] = {"oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds]}
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": f"urn:{PROTOCOL}",
        "title": PROTOCOL,
        "description": _DESCRIPTION,
        # Not oneOf: "presence" is a frame of both ways.
        "anyOf": [{"$ref": "#/$defs/ClientFrame"}, {"$ref": "#/$defs/ServerFrame"}],
        "$defs": definitions,
    }


def asyncapi() -> dict[str, Any]:
    """The channel, its two operations and every frame as an AsyncAPI 3.0 document.

    Codes, limits and what is durable stand in extensions (``x-``), which AsyncAPI leaves to applications.
    """
    limits = CodecLimits()
    messages = {
        **{_message_name(kind, "Client"): kind for kind in CLIENT_FRAMES.values()},
        **{_message_name(kind, "Server"): kind for kind in SERVER_FRAMES.values()},
    }
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {"title": _TITLE, "version": f"{VERSION}.0.0", "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {
            "chat": {
                "address": "/chat/{department}/{user_id}",
                "title": "One connection of one device",
                "parameters": {
                    "department": {"description": "The department's id; it must be one of the token's."},
                    "user_id": {"description": "The user's id; it must be the token's."},
                },
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "headers": {
                            "type": "object",
                            "properties": {
                                "Sec-WebSocket-Protocol": {
                                    "type": "string",
                                    "enum": [PROTOCOL, PROTOCOL_MSGPACK],
                                },
                                "Authorization": {"type": "string", "pattern": "^Bearer [^ ]+$"},
                            },
                        },
                        "bindingVersion": "0.1.0",
                    }
                },
            }
        },
        "operations": {
            "fromClient": _operation("receive", CLIENT_FRAMES.values(), "Client"),
            "toClient": _operation("send", SERVER_FRAMES.values(), "Server"),
        },
        "components": {
            "messages": {name: _message(name, kind) for name, kind in messages.items()},
            "schemas": _definitions("#/components/schemas/{name}"),
        },
        "x-limits": msgspec.to_builtins(limits),
        "x-error-codes": {
            code.value: {"retryable": text.retryable, "en": text.en, "pt": text.pt} for code, text in ERRORS.items()
        },
        "x-close-codes": {
            str(code.value): {"name": code.name.lower(), "reason": reason, "reconnect": code.reconnect}
            for code, reason in CLOSE_REASONS.items()
        },
    }


def _operation(action: str, kinds: Iterable[type[Frame]], side: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/chat"},
        "messages": [{"$ref": f"#/channels/chat/messages/{_message_name(kind, side)}"} for kind in kinds],
    }


def _message_name(kind: type[Frame], side: str) -> str:
    """``presence`` goes both ways, as two Structs; the side keeps the names of messages apart for all."""
    return f"{side}.{kind.__struct_config__.tag}"


def _message(name: str, kind: type[Frame]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": str(kind.__struct_config__.tag),
        "title": name,
        "summary": _first_line(kind),
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }
    if kind in SESSION_DURABLE:
        message["x-durable"] = "seq"
    elif kind in ALERT_DURABLE:
        message["x-durable"] = "alert_seq"
    if kind in RATE_EXEMPT:
        message["x-rate-exempt"] = True
    return message


def _first_line(kind: type[Frame]) -> str:
    return next(iter((kind.__doc__ or kind.__name__).strip().splitlines())).replace("``", "`")


def _definitions(ref_template: str) -> dict[str, Any]:
    """A schema for each frame and each part, by the name of its Struct."""
    kinds = (*CLIENT_FRAMES.values(), *SERVER_FRAMES.values())
    _, components = msgspec.json.schema_components(kinds, ref_template=ref_template)
    definitions = {name: _portable(schema) for name, schema in components.items()}
    for kind in CLIENT_FRAMES.values():
        content = definitions[kind.__name__]["properties"].get("content")
        if content is not None:
            # The upper limit counts after trimming, which a schema cannot say.
            limit = CodecLimits().max_content_chars
            content |= {"minLength": 1, "description": f"1 to {limit} characters without the space around it"}
    return definitions


def _portable(schema: Any) -> Any:
    r"""``schema`` as other languages read it: Python's ``\Z`` is ECMAScript's ``$``; whole numbers have an end."""
    if isinstance(schema, list | tuple):
        return [_portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    portable = {key: _portable(value) for key, value in schema.items()}
    if isinstance(portable.get("pattern"), str):
        portable["pattern"] = portable["pattern"].replace(r"\Z", "$").replace(r"\-]", "-]")
    if isinstance(portable.get("description"), str):
        portable["description"] = portable["description"].replace("``", "`")
    if portable.get("type") == "integer":
        portable.setdefault("maximum", MAX_INTEGER)
    return portable


def main(arguments: list[str]) -> int:
    """Print one of the two documents as JSON; 2 if another word is given."""
    documents = {"json": json_schema, "asyncapi": asyncapi}
    name = arguments[0] if arguments else "asyncapi"
    if len(arguments) > 1 or name not in documents:
        sys.stderr.write("usage: python -m protocols.schema [json|asyncapi]\n")
        return 2
    sys.stdout.write(json.dumps(documents[name](), indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
