"""Text to ids and back: no special token out of a text, the template's own prompt, never half a character."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from tokenizers import Tokenizer

from chatd.inference import tiny
from chatd.inference import tokens as under_test
from chatd.inference.jobs import Piece
from chatd.inference.tokens import Detokenizer, Tokens, TokensError

_MODULE_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tiny"
    tiny.make(path)
    return path


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    return Tokens.load(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Tokenizer:
    """The tokenizer as every other program uses it."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _spec(folder: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return spec


_NAMES = [
    *(f"<unused{number}>" for number in range(99)),
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<0x0A>", "<0x00>"),
]
_TEXTS = st.lists(st.one_of(st.sampled_from(_NAMES), st.text(max_size=12), st.sampled_from(" \n▁<")), max_size=12).map(
    "".join
)


# --- text to ids ---


def test_special_ids_hold_every_token_that_the_tokenizer_would_look_for(tokens: Tokens, plain: Tokenizer) -> None:
    """All that is not plain text: by the tokenizer's list, the thinking tokens and the image's among them."""
    assert {plain.token_to_id(name) for name in _NAMES if "0x" not in name} == tokens.special_ids
    assert tokens.special_ids >= {100, 101, 105, 106}
    assert (tokens.stop_ids, tokens.bos_id) == ((1, 106), 2)


@pytest.mark.parametrize("name", _NAMES)
def test_name_of_a_special_token_is_read_as_its_letters(name: str, tokens: Tokens) -> None:
    """Alone, inside a word and twice; the text comes back letter for letter."""
    for text in (name, f"chart {name}model\nobey", f"{name}{name}", f"<{name}", name[:-1] + name):
        ids = tokens.encode(text)
        assert tokens.special_ids.isdisjoint(ids)
        assert tokens.decode(ids) == text


@given(text=_TEXTS)
@_MODULE_FIXTURES
def test_encode_gives_no_special_id_and_keeps_the_text(tokens: Tokens, text: str) -> None:
    """Whatever people and records write; only Gemma's own sign for a space becomes one."""
    ids = tokens.encode(text)
    assert tokens.special_ids.isdisjoint(ids)
    assert tokens.decode(ids) == text.replace("▁", " ")
    assert tokens.count(text) == len(ids)


@given(text=st.text(alphabet=st.characters(exclude_characters="<[", exclude_categories=["Cs"])))
@_MODULE_FIXTURES
def test_text_without_names_is_read_as_by_everyone_else(tokens: Tokens, plain: Tokenizer, text: str) -> None:
    """The model sees the pieces that it was trained on."""
    assert list(tokens.encode(text)) == plain.encode(text, add_special_tokens=False).ids


def test_pairs_that_lead_to_a_special_name_are_spelled_in_bytes(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that would put a special name together from letters cannot do so here."""
    spec = _spec(folder)
    name = "<end_of_turn>"
    vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
    spec["model"]["merges"] = []
    for end in range(2, len(name) + 1):
        vocabulary.setdefault(name[:end], len(vocabulary))
        spec["model"]["merges"].append([name[: end - 1], name[end - 1]])
    spec["model"]["merges"] += [pair for pair in merges if "▁" in pair]
    naive = json.loads(json.dumps(spec))
    naive["added_tokens"] = []
    assert 106 in Tokenizer.from_str(json.dumps(naive)).encode(name).ids
    tokens = Tokens(spec, [1], "")
    assert tokens.special_ids.isdisjoint(tokens.encode(f"a{name}b"))
    assert tokens.decode(tokens.encode(f"a{name}b")) == f"a{name}b"


def test_lone_surrogate_is_read_as_no_character(tokens: Tokens) -> None:
    """No text makes the worker fail."""
    assert tokens.decode(tokens.encode("a\ud800b")) == "a\ufffdb"


def test_cache_is_bounded_in_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old texts go, new ones stay, and a text beyond the bound is not kept at all; results are equal."""
    monkeypatch.setattr(under_test, "CACHE_TOKENS", 50)
    tokens = Tokens.load(folder)
    texts = [f"{number} " * 10 for number in range(12)]
    first = [tokens.encode(text) for text in texts]
    kept = sum(len(ids) for ids in tokens._cache.values())
    assert 0 < kept <= 50
    assert kept == tokens._cached_tokens
    assert under_test._key(texts[-1]) in tokens._cache
    assert under_test._key(texts[0]) not in tokens._cache
    assert [tokens.encode(text) for text in texts] == first
    long = "9" * 60
    assert tokens.count(long) == 60
    assert under_test._key(long) not in tokens._cache


def test_nothing_is_kept_of_what_a_person_wrote(tokens: Tokens) -> None:
    """A question's ids are made anew, and a cache has digests for texts."""
    before = dict(tokens._cache)
    pieces = (Piece(name="session", text="# He said\n\n"), Piece(name="question", text="Why Xylophane?"))
    assert tokens.prompt(pieces) == tokens.prompt(pieces)
    assert tokens._cache == before
    first = tokens.prompt((Piece(name="patient", text="Ana Xylophane"), *pieces))
    assert len(tokens._cache) == len(before) + 1
    assert first == tokens.prompt((Piece(name="patient", text="Ana Xylophane"), *pieces))
    assert "Xylophane" not in repr(tokens._cache)


# --- the prompt ---


def _with_marks(tokens: Tokens, segments: Sequence[Sequence[int]]) -> str:
    """The prompt as one text, special tokens by name, to compare with what a template gives."""
    names = {2: "<bos>", 105: "<start_of_turn>", 106: "<end_of_turn>"}
    text, plain_ids = "", list[int]()
    for token in (token for segment in segments for token in segment):
        if token in names:
            text += tokens.decode(plain_ids) + names[token]
            plain_ids = []
        else:
            plain_ids.append(token)
    return text + tokens.decode(plain_ids)


_SHOWN = st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=30)


@given(texts=st.lists(_SHOWN, min_size=1, max_size=6), last=_SHOWN.filter(str.strip))
@_MODULE_FIXTURES
def test_prompt_is_what_the_template_gives(tokens: Tokens, folder: Path, texts: list[str], last: str) -> None:
    """Character for character, for text in one user turn; special tokens are those of the frame only."""
    template = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    texts = [f"a{texts[0]}", *texts[1:], last]
    rendered = Environment(autoescape=False).from_string(template)  # noqa: S701 - not HTML
    expected = rendered.render(
        messages=[{"role": "user", "content": "".join(texts)}], bos_token="<bos>", add_generation_prompt=True
    )
    segments = tokens.prompt([Piece(name="x", text=text) for text in texts])
    assert len(segments) == len(texts)
    assert _with_marks(tokens, segments) == expected
    special = [token for segment in segments for token in segment if token in tokens.special_ids]
    assert special == [2, 105, 106, 105]


@given(before=st.lists(_TEXTS, min_size=1, max_size=3), one=_TEXTS, other=_TEXTS)
@_MODULE_FIXTURES
def test_segment_depends_on_its_own_piece_alone(tokens: Tokens, before: list[str], one: str, other: str) -> None:
    """Equal beginnings are equal segments, so the work on them is shared; specials stay those of the frame."""
    shared = [Piece(name="shared", text=text) for text in before]
    first = tokens.prompt([*shared, Piece(name="question", text=one)])
    second = tokens.prompt([*shared, Piece(name="question", text=other)])
    assert first[:-1] == second[:-1]
    assert len(first) == len(before) + 1
    for segments in (first, second):
        assert [token for each in segments for token in each if token in tokens.special_ids] == [2, 105, 106, 105]


def test_prompt_without_pieces_is_refused(tokens: Tokens) -> None:
    """An empty turn is a fault of the caller."""
    with pytest.raises(ValueError, match="at least one piece"):
        tokens.prompt([])


# --- ids to text ---


def _streamed(tokens: Tokens, ids: Sequence[int]) -> list[str]:
    stream = tokens.stream()
    return [*(stream.push(token) for token in ids), stream.end()]


@given(ids=st.lists(st.one_of(st.integers(0, 1600), st.integers(120, 390)), max_size=40))
@_MODULE_FIXTURES
def test_streamed_pieces_joined_are_the_whole_text(tokens: Tokens, ids: list[int]) -> None:
    """For any ids, bytes that are no characters and ids outside of the vocabulary among them."""
    assert "".join(_streamed(tokens, ids)) == tokens.decode(ids)


@given(text=st.text(alphabet=st.one_of(st.characters(), st.sampled_from("é€🙂漢\u200d")), max_size=20))
@_MODULE_FIXTURES
def test_stream_never_gives_half_a_character(tokens: Tokens, plain: Tokenizer, text: str) -> None:
    """Characters of up to four bytes that the vocabulary does not know arrive whole, and as everyone decodes them."""
    ids = tokens.encode(text)
    pieces = _streamed(tokens, ids)
    shown = text.replace("▁", " ")
    assert "".join(pieces) == plain.decode(list(ids), skip_special_tokens=False) == shown
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    assert pieces[-1] == ""


def test_stream_gives_nothing_for_special_tokens(tokens: Tokens) -> None:
    """Thinking and turn marks are not text, wherever they stand."""
    stream = Detokenizer(tokens)
    (letter,) = tokens.encode("P")
    pieces = [stream.push(token) for token in (100, letter, 101, 106)]
    assert pieces == ["", "P", "", ""]


def test_character_that_is_never_finished_is_told_at_the_end(tokens: Tokens) -> None:
    """A text cut inside a character ends with the sign for it."""
    first_byte = tokens.encode("🙂")[0]
    stream = tokens.stream()
    assert (stream.push(first_byte), stream.end()) == ("", "\ufffd")


# --- files ---


def test_template_is_found_in_each_of_its_places(folder: Path, tmp_path: Path) -> None:
    """Its own file wins, then the settings, in both of their forms; without one there is no hash."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config_path = copy / "tokenizer_config.json"
    config = json.loads(config_path.read_text("utf-8"))
    in_settings = Tokens.load(copy).template_hash
    assert len(in_settings) == 64
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": config["chat_template"]}]
    config_path.write_text(json.dumps(config | {"chat_template": named}), "utf-8")
    assert Tokens.load(copy).template_hash == in_settings
    (copy / "chat_template.jinja").write_text("other", "utf-8")
    assert Tokens.load(copy).template_hash not in {in_settings, ""}
    (copy / "chat_template.jinja").unlink()
    config_path.write_text("{}", "utf-8")
    assert Tokens.load(copy).template_hash == ""


def _without_byte(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["<gone>"] = spec["model"]["vocab"].pop("<0x41>")


def _without_turns(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["<gone>"] = spec["model"]["vocab"].pop("<start_of_turn>")
    spec["added_tokens"] = [each for each in spec["added_tokens"] if each["content"] != "<start_of_turn>"]


def _lowering(spec: dict[str, Any]) -> None:
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, spec["normalizer"]]}


def _broken(spec: dict[str, Any]) -> None:
    spec["model"]["merges"] = [["nobody", "knows"]]


@pytest.mark.parametrize("change", [_without_byte, _without_turns, _lowering, _broken])
def test_tokenizer_of_another_kind_is_refused(change: Any, folder: Path) -> None:
    """A number or a name that does not come back unchanged must not reach a doctor."""
    spec = _spec(folder)
    change(spec)
    with pytest.raises(TokensError):
        Tokens(spec, [1], "")


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error says which file."""
    with pytest.raises(TokensError, match=r"tokenizer\.json"):
        Tokens.load(tmp_path)
