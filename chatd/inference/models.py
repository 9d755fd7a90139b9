"""Models in folders: which one it is, whether it is whole and fits chatd, and the way from a download to mlx's form.

Nothing here runs a model; what does (``convert``, the canary) is imported or given when it is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from chatd.inference.jobs import ModelCard, Piece

if TYPE_CHECKING:
    from chatd.inference.tokens import Tokens

#: Where the hashes of a model's files are pinned, beside its weights.
PIN_FILE: Final = "chatd-model.json"

# What makes a model what it is; notes and pictures of a download do not.
_FILES: Final = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".py"})
#: Architectures whose prompt and special tokens chatd knows.
_MODEL_TYPES: Final = ("gemma3", "gemma3_text")
#: The ids that Gemma's special tokens have, the two thinking marks of MedGemma 1.5 among them.
_SPECIAL: Final = {
    **{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unused94>": 100, "<unused95>": 101},
    **{"<start_of_turn>": 105, "<end_of_turn>": 106},
}
_CHUNK_BYTES: Final = 1 << 20
_MAX_HEADER_BYTES: Final = 100_000_000
_HUB_FOLDER: Final = re.compile(r"models--(.+?)--(.+)")
# Files as they were hashed by this process.
_hashed: dict[tuple[str, int, int], str] = {}


class ModelError(Exception):
    """A model cannot be read or converted; the text is for the person at the command."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. ``error``: chatd must not use this model. ``warning``: a person should know."""

    level: Literal["ok", "warning", "error"]
    what: str
    text: str


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was pinned. Size and time only tell whether it must be read again."""

    sha256: str
    size_bytes: int
    mtime_ns: int


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``PIN_FILE``."""

    revision: str
    files: dict[str, PinnedFile]


# --- which model it is ---


def revision(folder: Path, *, read_all: bool = False) -> str:
    """A hash over names and contents of the model's files, in hex; the same for the same files anywhere.

    A file is read once per process, and not at all where it is pinned and neither its size nor its time has changed:
    gigabytes take seconds, and a worker that was restarted must not take them again. ``read_all``: read every file.

    Raises:
        ModelError: the folder has no such files or one cannot be read.
    """
    return _revision(_hashes(folder, read_all=read_all))


def card(folder: Path) -> ModelCard:
    """What answers say about the model that wrote them. Raises ModelError."""
    from chatd.inference.tokens import read_json, read_template

    template = read_template(folder)
    return ModelCard(
        id=_id(folder),
        revision=revision(folder),
        quantization=_quantization(read_json(folder / "config.json") or {}),
        template=hashlib.sha256(template.encode()).hexdigest() if template else "",
    )


def _id(folder: Path) -> str:
    """The folder's name; of the hub's own cache the name on the hub."""
    for part in folder.absolute().parts[::-1]:
        if found := _HUB_FOLDER.fullmatch(part):
            return f"{found[1]}/{found[2]}"
    return folder.resolve().name


def _quantization(config: dict[str, Any]) -> str:
    """As "4bit-g64" (mlx), "awq-4bit" (others), or the type of the numbers; "" where nothing says."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        mlx = place.get("quantization")
        if isinstance(mlx, dict) and "bits" in mlx:
            return f"{mlx['bits']}bit-g{mlx.get('group_size', '?')}"
        other = place.get("quantization_config")
        if isinstance(other, dict):
            method = str(other.get("quant_method", "unknown"))
            return f"{method}-{other['bits']}bit" if "bits" in other else method
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(place.get(key), str):
                return str(place[key])
    return ""


def _model_files(folder: Path) -> list[Path]:
    try:
        found = [
            path for path in folder.iterdir() if path.suffix in _FILES and path.name != PIN_FILE and path.is_file()
        ]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    if not found:
        raise ModelError(f"{folder} holds no model")
    return sorted(found, key=lambda path: path.name)


def _hashes(folder: Path, *, read_all: bool) -> dict[str, PinnedFile]:
    pin = None if read_all else read_pin(folder)
    hashes = {}
    for path in _model_files(folder):
        try:
            stat = path.stat()
            known = pin.files.get(path.name) if pin else None
            key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
            if known is not None and (known.size_bytes, known.mtime_ns) == key[1:]:
                digest = known.sha256
            elif read_all or key not in _hashed:
                digest = _hashed[key] = _sha256(path)
            else:
                digest = _hashed[key]
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        hashes[path.name] = PinnedFile(sha256=digest, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
    return hashes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _revision(files: dict[str, PinnedFile]) -> str:
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_pin(folder: Path) -> Pin | None:
    """The pinned hashes; None where there are none. Raises ModelError if they cannot be read."""
    try:
        return msgspec.json.decode((folder / PIN_FILE).read_bytes(), type=Pin)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{folder / PIN_FILE} cannot be read") from error


def _write_pin(folder: Path, files: dict[str, PinnedFile]) -> None:
    data = msgspec.json.format(msgspec.json.encode(Pin(revision=_revision(files), files=files)), indent=1)
    beside = folder / f".{PIN_FILE}.new"
    beside.write_bytes(data + b"\n")
    beside.replace(folder / PIN_FILE)


# --- whether it is whole and fits ---


def check(
    folder: Path,
    *,
    pin: bool = False,
    canary: Callable[[Path], str] | None = None,
    say: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Look at everything that chatd relies on in a model. Every file is read whole.

    Args:
        pin: write the hashes of the files, also in place of older ones, if nothing else is wrong.
        canary: loads the model and returns some text of it; what it raises is a finding.
        say: gets each finding when it is made.
    """
    from chatd.inference.tokens import Tokens, TokensError, read_json

    findings: list[Finding] = []

    def found(made: Iterable[Finding]) -> bool:
        """Take findings; whether none is an error."""
        is_well = True
        for finding in made:
            findings.append(finding)
            say(finding)
            is_well = is_well and finding.level != "error"
        return is_well

    if not found(_check_files(folder)):
        return findings
    found(_check_architecture(read_json(folder / "config.json") or {}))
    try:
        tokens = Tokens.load(folder)
    except TokensError as error:
        found([_error("tokenizer", str(error))])
    else:
        found(_check_special(folder, tokens))
        found([_check_template(folder, tokens), _check_grammar(folder, tokens)])
    if canary is not None:
        found([_check_canary(folder, canary)])
    found(_check_pin(folder, pin=pin, is_well=all(finding.level != "error" for finding in findings)))
    return findings


def _ok(what: str, text: str) -> Finding:
    return Finding(level="ok", what=what, text=text)


def _warning(what: str, text: str) -> Finding:
    return Finding(level="warning", what=what, text=text)


def _error(what: str, text: str) -> Finding:
    return Finding(level="error", what=what, text=text)


def _check_files(folder: Path) -> list[Finding]:
    """All files there, and as long as they say they are: a download that broke off is found here."""
    from chatd.inference.tokens import read_json

    absent = [name for name in ("config.json", "tokenizer.json") if read_json(folder / name) is None]
    if absent:
        return [_error("files", f"missing or no JSON: {', '.join(absent)}")]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = (read_json(index) or {}).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            return [_error("files", f"{index.name} lists no weights")]
        weights = sorted({str(name) for name in listed.values()})
    else:
        weights = sorted(path.name for path in folder.glob("*.safetensors"))
        if not weights:
            return [_error("files", "no weights (*.safetensors)")]
    broken = [name for name in weights if not _is_whole(folder / name)]
    if broken:
        return [_error("files", f"missing or not whole: {', '.join(broken)}")]
    size = sum((folder / name).stat().st_size for name in weights)
    return [_ok("files", f"{len(weights)} of weights, {size / 1e6:,.0f} MB")]


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= _MAX_HEADER_BYTES:
                return False
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(path.stat().st_size == 8 + length + max(ends))
    except (OSError, ValueError, struct.error, KeyError, IndexError, TypeError, AttributeError):
        return False


def _check_architecture(config: dict[str, Any]) -> list[Finding]:
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        return [_error("architecture", f"{kind!r} is not one of {', '.join(_MODEL_TYPES)}")]
    return [_ok("architecture", f"{kind}, {_quantization(config) or 'type of numbers not said'}")]


def _check_special(folder: Path, tokens: Tokens) -> list[Finding]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrong = [name for name, token in _SPECIAL.items() if tokenizer.token_to_id(name) != token]
    findings = []
    if wrong:
        findings.append(_error("special tokens", f"not at Gemma's ids: {', '.join(wrong)}"))
    elif not tokens.special_ids.issuperset(_SPECIAL.values()):
        findings.append(_error("special tokens", "a text could become one"))
    else:
        findings.append(_ok("special tokens", f"{len(tokens.special_ids)} that no text can become"))
    stops = ", ".join(map(str, tokens.stop_ids))
    if {_SPECIAL["<eos>"], _SPECIAL["<end_of_turn>"]} <= set(tokens.stop_ids):
        findings.append(_ok("stop ids", stops))
    else:
        findings.append(_error("stop ids", f"{stops}; an answer ends with 1 or 106 (generation_config.json)"))
    return findings


def _check_template(folder: Path, tokens: Tokens) -> Finding:
    """The prompt that chatd builds is the one that the model's own template gives."""
    from chatd.inference.tokens import read_template

    template = read_template(folder)
    if not template:
        return _warning("template", "the model brings none; chatd's is Gemma 3's")
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return _warning("template", "not compared: jinja2 is not installed")
    text = "Rules.\n\n# Question\nPotassium 6.4 mmol/L?"

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # A template is a program out of a download.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        theirs = environment.from_string(template).render(
            messages=[{"role": "user", "content": text}],
            bos_token="<bos>",  # noqa: S106 - a token's name
            add_generation_prompt=True,
            raise_exception=refuse,
        )
    except Exception as error:  # a program of somebody else's may fail in any way
        return _error("template", f"it fails: {type(error).__name__}")
    names = {token: name for name, token in _SPECIAL.items()}
    ours = "".join(
        names.get(token) or tokens.decode([token])
        for segment in tokens.prompt([Piece(name="check", text=text)])
        for token in segment
    )
    if theirs != ours:
        return _error("template", "it is not the one that chatd builds prompts for")
    return _ok("template", f"as chatd builds prompts, {tokens.template_hash[:12]}")


def _check_grammar(folder: Path, tokens: Tokens) -> Finding:
    """The sections' grammar compiles for this tokenizer, takes an answer in its usual pieces and ends after it."""
    from chatd.inference.sections import Sections, grammar, render

    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError:
        return _warning("grammar", "not compiled: llguidance is not installed")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    actions = ("order_lactate", "notify_icu")
    try:
        vocabulary = LLTokenizer(text, eos_token=list(tokens.stop_ids))
        matcher = LLMatcher(vocabulary, grammar(actions))
    except Exception as error:  # llguidance raises nothing narrower
        return _error("grammar", f"it does not compile: {type(error).__name__}")
    if matcher.is_error():
        return _error("grammar", "it does not compile for this tokenizer")
    sample = Sections(headline="Potássio 6.4 mmol/L", findings=("ECG: peaked T waves",), actions=actions[:1])
    answer = tokens.encode(render(sample))
    if not matcher.consume_tokens(list(answer)) or not matcher.is_accepting():
        return _error("grammar", "it refuses a right answer in this tokenizer's pieces")
    return _ok("grammar", "compiles and takes an answer")


def _check_canary(folder: Path, canary: Callable[[Path], str]) -> Finding:
    try:
        text = canary(folder)
    except Exception as error:  # whatever an engine raises: the model does not run
        return _error("canary", f"the model does not run: {type(error).__name__}: {error}")
    if not text.strip():
        return _error("canary", "the model wrote nothing")
    return _ok("canary", f"the model wrote {len(text)} characters")


def _check_pin(folder: Path, *, pin: bool, is_well: bool) -> list[Finding]:
    try:
        files = _hashes(folder, read_all=True)
        found = _revision(files)
        if pin and is_well:
            old = _old_revision(folder)
            _write_pin(folder, files)
            was = f", in place of {old[:12]}" if old and old != found else ""
            return [_ok("pin", f"{found} written to {PIN_FILE}{was}")]
        pinned = read_pin(folder)
    except (ModelError, OSError) as error:
        return [_error("pin", str(error))]
    if pinned is None:
        return [_warning("pin", f"not pinned; these files are {found}")]
    if pinned.revision == found:
        return [_ok("pin", f"{found} as pinned")]
    names = sorted(pinned.files.keys() | files.keys())
    changed = [name for name in names if _digest(pinned.files, name) != _digest(files, name)]
    return [_error("pin", f"not the files that were pinned: {', '.join(changed) or PIN_FILE}")]


def _digest(files: dict[str, PinnedFile], name: str) -> str | None:
    return files[name].sha256 if name in files else None


def _old_revision(folder: Path) -> str:
    try:
        old = read_pin(folder)
    except ModelError:
        return "an unreadable one"
    return old.revision if old else ""


# --- from a download to mlx's form ---


def convert(
    source: str | Path, folder: Path, bits: Literal[4, 8] | None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Write a model in mlx's form, quantized to ``bits`` (None: as it is), with mlx-lm's own conversion.

    ``source``: a folder, or a name on the hub, which is downloaded if the machine may. ``folder`` must not exist; it
    appears when it is whole, so a conversion that broke off leaves nothing that looks like a model.

    Raises:
        ModelError: what is in the way, or why the conversion failed.
    """
    if folder.exists():
        raise ModelError(f"{folder} exists already")
    try:
        from mlx_lm.convert import convert as mlx_convert
    except ImportError as error:
        raise ModelError("mlx-lm is not installed on this machine") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        target = Path(beside) / "model"
        try:
            with contextlib.redirect_stdout(_Lines(say)):
                mlx_convert(str(source), str(target), quantize=bits is not None, q_bits=bits)
        except Exception as error:  # what mlx, the hub or the disk raises
            raise ModelError(f"the conversion failed: {type(error).__name__}: {error}") from error
        generation = Path(source) / "generation_config.json"
        if generation.is_file() and not (target / generation.name).exists():
            shutil.copy(generation, target / generation.name)
        os.replace(target, folder)


class _Lines(io.TextIOBase):
    """Takes the place of standard output and hands on whole lines; who gets them may print them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stdout = sys.stdout
        self._begun = ""

    def write(self, text: str, /) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                with contextlib.redirect_stdout(self._stdout):
                    self._say(line.strip())
        return len(text)
