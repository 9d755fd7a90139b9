"""Models in folders: one hash for the same files, what is wrong is found, conversion is whole or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chatd import cli
from chatd.inference import models, tiny
from chatd.inference.jobs import ModelCard
from chatd.inference.models import PIN_FILE, Finding, ModelError, card, check, convert, revision

# mlx and the tokenizers' loader warn about their own use of other libraries.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.make(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def _levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def _text(findings: list[Finding], what: str) -> str:
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding.text


def _change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


# --- which model it is ---


def test_revision_is_of_the_files_and_not_of_the_place(folder: Path, made: Path) -> None:
    """Two machines with the same files name the same model; notes beside it do not count."""
    (folder / "README.md").write_text("notes")
    assert revision(folder) == revision(made)
    _change(folder / "config.json", sliding_window=256)
    assert revision(folder) != revision(made)


def test_revision_tells_a_renamed_file(folder: Path, made: Path) -> None:
    """Names count: the same bytes in other places are another model."""
    (folder / "generation_config.json").rename(folder / "other.json")
    assert revision(folder) != revision(made)


def test_revision_reads_a_pinned_file_only_when_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted worker does not hash gigabytes again; a file with another time is read, whatever it says."""
    check(folder, pin=True)
    whole = revision(folder, read_all=True)
    read: list[str] = []

    def counted(path: Path, real: Callable[[Path], str] = models._sha256) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(models, "_sha256", counted)
    monkeypatch.setattr(models, "_hashed", {})
    assert revision(folder) == whole
    assert read == []
    os.utime(folder / "config.json", ns=(1, 1))
    assert revision(folder) == whole
    assert revision(folder) == whole
    assert read == ["config.json"]
    assert revision(folder, read_all=True) == whole
    assert "model.safetensors" in read


def test_folder_without_a_model_is_told(tmp_path: Path) -> None:
    """No hash of nothing."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match=path.name):
            revision(path)


def test_card_names_the_model_its_numbers_and_its_template(folder: Path) -> None:
    """What stands under every answer."""
    found = card(folder)
    assert found == ModelCard(id="tiny", revision=revision(folder), quantization="float32", template=found.template)
    assert len(found.template) == 64


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "4bit-g64"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq-4bit"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"torch_dtype": None, "text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"torch_dtype": None}, ""),
    ],
)
def test_card_says_how_the_numbers_are_kept(config: dict[str, object], expected: str, folder: Path) -> None:
    """As each kind of conversion writes it."""
    _change(folder / "config.json", **config)
    assert card(folder).quantization == expected


def test_card_of_a_folder_in_the_hubs_cache_has_the_hubs_name(made: Path, tmp_path: Path) -> None:
    """A snapshot's folder is named by a commit, which tells nobody anything."""
    snapshot = tmp_path / "models--google--medgemma-1.5-4b-it" / "snapshots" / "abc"
    shutil.copytree(made, snapshot)
    assert card(snapshot).id == "google/medgemma-1.5-4b-it"


# --- check ---


def test_check_finds_nothing_wrong_with_a_good_model(folder: Path) -> None:
    """Every check speaks, and only the missing pin is worth a word."""
    said: list[Finding] = []
    findings = check(folder, canary=lambda _: "text", say=said.append)
    assert said == findings
    assert _levels(findings) == {
        **dict.fromkeys(("files", "architecture", "special tokens", "stop ids", "template", "grammar", "canary"), "ok"),
        "pin": "warning",
    }


def test_pinned_model_is_known_again_and_a_changed_one_is_refused(folder: Path) -> None:
    """The file that changed is named; changing it with the same size and time does not help."""
    assert _levels(check(folder, pin=True))["pin"] == "ok"
    pinned = (folder / PIN_FILE).read_bytes()
    assert _levels(check(folder))["pin"] == "ok"
    weights = folder / "model.safetensors"
    times = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "added.json").write_text("{}")
    findings = check(folder)
    assert _levels(findings)["pin"] == "error"
    assert _text(findings, "pin").endswith("added.json, model.safetensors")
    assert (folder / PIN_FILE).read_bytes() == pinned
    again = check(folder, pin=True)
    assert _levels(again)["pin"] == "ok"
    assert "in place of" in _text(again, "pin")
    assert _levels(check(folder))["pin"] == "ok"


def test_model_with_an_error_is_not_pinned(folder: Path) -> None:
    """A pin says that somebody has looked and found it well."""
    _change(folder / "config.json", model_type="llama")
    findings = check(folder, pin=True)
    assert _levels(findings)["architecture"] == "error"
    assert not (folder / PIN_FILE).exists()


def test_broken_pin_is_an_error(folder: Path) -> None:
    """It is neither ignored nor taken for no pin."""
    (folder / PIN_FILE).write_text("{")
    assert _levels(check(folder))["pin"] == "error"


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def _part_missing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_config(folder: Path) -> None:
    (folder / "config.json").write_text("<html>")


@pytest.mark.parametrize("spoil", [_cut, _pointer, _part_missing, _no_weights, _no_config])
def test_check_finds_a_download_that_broke_off(spoil: Callable[[Path], None], folder: Path) -> None:
    """Before an engine loads half a model."""
    spoil(folder)
    findings = check(folder, pin=True)
    assert _levels(findings) == {"files": "error"}
    assert not (folder / PIN_FILE).exists()


def _template(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "tokenizer_config.json"
    _change(path, chat_template=change(json.loads(path.read_text("utf-8"))["chat_template"]))


@pytest.mark.parametrize(
    ("change", "level"),
    [
        (lambda text: text.replace("<end_of_turn>", "<eos>"), "error"),
        (lambda text: text.replace("{{- bos_token -}}", "{{- bos_token ~ bos_token -}}"), "error"),
        (lambda text: "{{ raise_exception('no') }}", "error"),
        (lambda text: "{{ ''.__class__.__mro__ }}", "error"),
        (lambda text: "{% broken", "error"),
        (lambda text: "", "warning"),
        (lambda text: f"{{# a note #}}{text}", "ok"),
    ],
)
def test_check_compares_the_template_with_what_chatd_sends(
    change: Callable[[str], str], level: str, folder: Path
) -> None:
    """By what it gives, not by its letters; a template that tries to leave its sandbox fails."""
    _template(folder, change)
    assert _levels(check(folder))["template"] == level


def test_check_finds_special_tokens_in_other_places(folder: Path) -> None:
    """MedGemma's thinking marks are known by their ids."""
    path = folder / "tokenizer.json"
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('"<unused94>"', '"<x>"').replace('"<unused5>"', '"<unused94>"').replace('"<x>"', '"<unused5>"')
    )
    findings = check(folder)
    assert _levels(findings)["special tokens"] == "error"
    assert "<unused94>" in _text(findings, "special tokens")


def test_check_finds_a_missing_stop_id_and_a_tokenizer_of_another_kind(folder: Path) -> None:
    """Without <eos> a text would go on to its bound."""
    for name in ("generation_config.json", "config.json"):
        _change(folder / name, eos_token_id=106)
    assert _levels(check(folder))["stop ids"] == "error"
    _change(folder / "tokenizer.json", model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})
    assert _levels(check(folder))["tokenizer"] == "error"


def test_canary_that_fails_or_is_silent_is_an_error(folder: Path) -> None:
    """The one check that needs the engine: the model must say something."""

    def failing(path: Path) -> str:
        raise RuntimeError("no kernel image")

    findings = check(folder, canary=failing)
    assert _levels(findings)["canary"] == "error"
    assert "no kernel image" in _text(findings, "canary")
    assert _levels(check(folder, canary=lambda _: " \n"))["canary"] == "error"


# --- convert ---


@pytest.mark.parametrize("bits", [4, 8, None])
def test_converted_model_loads_writes_and_passes_the_check(bits: int | None, made: Path, tmp_path: Path) -> None:
    """mlx-lm's own conversion of the tiny model, for real; template and stop ids come along."""
    mlx_lm = pytest.importorskip("mlx_lm")
    said: list[str] = []
    target = tmp_path / "out" / "converted"
    convert(made, target, bits, said.append)  # type: ignore[arg-type]
    assert said
    assert [path.name for path in target.parent.iterdir()] == ["converted"]

    def canary(folder: Path) -> str:
        loaded, tokenizer = mlx_lm.load(str(folder))
        return str(mlx_lm.generate(loaded, tokenizer, prompt="Potassium", max_tokens=8))

    findings = check(target, pin=True, canary=canary)
    assert set(_levels(findings).values()) == {"ok"}
    before, after = card(made), card(target)
    assert after.quantization == ("float32" if bits is None else f"{bits}bit-g64")
    assert after.template == before.template
    assert after.revision != before.revision


def test_convert_leaves_nothing_when_it_fails_and_never_overwrites(folder: Path, tmp_path: Path) -> None:
    """Half a model must not look like one, and somebody's model stays."""
    target = tmp_path / "converted"
    _no_weights(folder)
    with pytest.raises(ModelError, match="the conversion failed"):
        convert(folder, target, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    target.mkdir()
    with pytest.raises(ModelError, match="exists already"):
        convert(folder, target, 4)


@pytest.mark.parametrize(("word", "bits"), [("4", 4), ("8", 8), ("none", None)])
def test_command_converts_to_the_bits_that_were_asked_for(
    word: str, bits: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word of ``--bits`` is what ``convert`` takes, and the command's table has no other."""
    asked: list[object] = []
    monkeypatch.setattr(models, "convert", lambda _source, _folder, given, _say: asked.append(given))
    assert cli.main(["model", "convert", "--bits", word, "somewhere", str(tmp_path / "out")]) == 0
    assert asked == [bits]
    assert tuple(cli._BITS) == ("4", "8", "none")
