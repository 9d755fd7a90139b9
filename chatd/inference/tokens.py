"""Text to token ids and back for Gemma's kind of tokenizer, with one promise: no special token comes from a text.

A prompt is built of ids here, not of a template's text, so that whoever writes ``<end_of_turn>`` into a chart has
written fourteen characters and not ended a turn, and so that every segment's ids depend on that segment alone.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from chatd.inference.jobs import Piece

#: Token ids that are kept for texts which come again; 40 bytes each.
CACHE_TOKENS: Final = 500_000
#: Pieces of one person's talk: they do not come again, and nothing of them is kept.
_OF_ONE_TALK: Final = frozenset({"session", "question"})

# Special by name also where a tokenizer's file does not list them as added.
_SPECIAL_NAME: Final = re.compile(
    r"<(?:pad|eos|bos|unk|mask|unused\d+|(?:start|end)_of_(?:turn|image)|image_soft_token)>|\[multimodal\]"
)
_TURN: Final = ("<bos>", "<start_of_turn>", "<end_of_turn>")
# Added tokens of nothing else, as "\n\n", are plain text.
_BLANK: Final = "▁ \t\n\r\v\f"
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PROBE: Final = "  Ação: K⁺ 6.45 mmol/L,\tµg/kg \n\n- \x00\x7f 漢字 🙂 "


class TokensError(Exception):
    """The folder holds no tokenizer that chatd can use; the text says what is missing and holds no prompt."""


class Tokens:
    """A model's tokenizer. All methods may be called from several threads.

    ``special_ids``: every token with a meaning of its own: marks of turns and images, ``<bos>``, unused and thinking
    tokens, everything that ends a text. ``stop_ids``: those that end a text, ascending. ``template_hash``: SHA-256 of
    the chat template in hex, "" without one.
    """

    def __init__(self, spec: dict[str, Any], stop_ids: Iterable[int], template: str) -> None:
        """``spec`` is ``tokenizer.json``, and is changed. Raises TokensError."""
        vocabulary: dict[str, int] = spec.get("model", {}).get("vocab", {})
        if not isinstance(vocabulary, dict):
            raise TokensError("not a byte pair tokenizer")
        self._bytes = {number: f"<0x{number:02X}>" for number in range(256)}
        added: list[dict[str, Any]] = spec.get("added_tokens", [])
        ids = vocabulary | {each["content"]: each["id"] for each in added}
        if absent := [name for name in (*self._bytes.values(), *_TURN) if name not in ids]:
            raise TokensError(f"the tokenizer has no token {absent[0]}")
        byte_ids = [ids[name] for name in self._bytes.values()]
        self._byte_of = {token: bytes([number]) for number, token in enumerate(byte_ids)}
        self._byte_ids = byte_ids
        special = {each["id"] for each in added if each["content"].strip(_BLANK)}
        special |= {token for name, token in ids.items() if _SPECIAL_NAME.fullmatch(name)}
        special -= self._byte_of.keys()
        self.bos_id: int = ids["<bos>"]
        self.stop_ids: tuple[int, ...] = tuple(sorted({*stop_ids, ids["<end_of_turn>"]}))
        self.special_ids: frozenset[int] = frozenset(special.union(self.stop_ids))
        self.template_hash = hashlib.sha256(template.encode()).hexdigest() if template else ""
        # What is not added is not looked for in a text: a name is read as the letters it is written with.
        spec["added_tokens"] = [
            each for each in added if each["id"] not in self.special_ids and each["id"] not in self._byte_of
        ]
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        except Exception as error:  # the library raises nothing narrower
            raise TokensError("the tokenizer's file cannot be read") from error
        # The library would remember words, up to texts of 256 bytes in Gemma's case, for as long as it lives.
        self._tokenizer.model._resize_cache(0)
        self._names = {token: name for name, token in ids.items() if token in self.special_ids}
        self._lock = threading.Lock()
        # By the text's digest: who reads this memory finds no words in it.
        self._cache: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._cached_tokens = 0
        self._before = (self.bos_id, ids["<start_of_turn>"], *self.encode("user\n"))
        self._after = (
            *(ids["<end_of_turn>"], *self.encode("\n")),
            *(ids["<start_of_turn>"], *self.encode("model\n")),
        )
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise TokensError("the tokenizer does not give every text back: not of Gemma's kind")

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """Read the tokenizer of a model's folder; seconds at 262,144 tokens. Raises TokensError."""
        spec = read_json(folder / "tokenizer.json")
        if spec is None:
            raise TokensError("tokenizer.json is missing or broken")
        stops: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            declared = (read_json(folder / name) or {}).get("eos_token_id")
            stops.update(declared if isinstance(declared, list) else [] if declared is None else [declared])
        return cls(spec, stops, read_template(folder))

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text alone: no ``<bos>``, never a special id. Lone surrogates become U+FFFD."""
        key = _key(text)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        ids = self._encode(text)
        if len(ids) <= CACHE_TOKENS:
            with self._lock:
                if key not in self._cache:
                    self._cache[key] = ids
                    self._cached_tokens += len(ids)
                while self._cached_tokens > CACHE_TOKENS:
                    self._cached_tokens -= len(self._cache.popitem(last=False)[1])
        return ids

    def _encode(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer.encode(_LONE_SURROGATE.sub("\ufffd", text), add_special_tokens=False).ids
        if self.special_ids.isdisjoint(ids):
            return tuple(ids)
        # A tokenizer whose pairs lead to a special token's name: the name is spelled in bytes.
        return tuple(
            part for token in ids for part in (self._spelled(token) if token in self.special_ids else (token,))
        )

    def _spelled(self, token: int) -> list[int]:
        return [self._byte_ids[byte] for byte in self._names.get(token, "").encode()]

    def count(self, text: str) -> int:
        """How many tokens a text has; what has been counted need not be encoded again."""
        return len(self.encode(text))

    def prompt(self, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], ...]:
        """One segment of ids per piece, with Gemma's single user turn around all of them and ``<bos>`` once.

        The segments' text is what the model's template gives for the pieces' text: without spaces around it. Each
        piece is encoded alone, so equal beginnings are equal segments whatever follows.

        Raises:
            ValueError: there are no pieces.
        """
        if not pieces:
            raise ValueError("a prompt has at least one piece")
        texts = [piece.text for piece in pieces]
        texts[0] = texts[0].lstrip()
        texts[-1] = texts[-1].rstrip()
        segments = [
            self._encode(text) if piece.name in _OF_ONE_TALK else self.encode(text)
            for piece, text in zip(pieces, texts, strict=True)
        ]
        segments[0] = (*self._before, *segments[0])
        segments[-1] = (*segments[-1], *self._after)
        return tuple(segments)

    def stream(self) -> Detokenizer:
        """A reader of one text's tokens."""
        return Detokenizer(self)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ones are nothing, bytes that are no character become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8; nothing for special ids and ids outside of the vocabulary."""
        byte = self._byte_of.get(token)
        if byte is not None:
            return byte
        if token in self.special_ids:
            return b""
        name: str | None = self._tokenizer.id_to_token(token)
        return b"" if name is None else name.replace("▁", " ").encode()


class Detokenizer:
    """Text from tokens as they come, never half a character; all given texts joined are ``Tokens.decode`` of all."""

    def __init__(self, tokens: Tokens) -> None:
        self._token_bytes = tokens.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What this token makes certain; "" while a character is not whole."""
        return self._decoder.decode(self._token_bytes(token))

    def end(self) -> str:
        """What is left: U+FFFD for a character that was never finished, usually ""."""
        return self._decoder.decode(b"", final=True)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_template(folder: Path) -> str:
    """The chat template of a model's folder: from its own file, or from the tokenizer's settings; "" without one."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        template = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(template, list):
        template = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}.get(
            "default"
        )
    return template if isinstance(template, str) else ""
