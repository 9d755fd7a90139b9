"""The tiny model: the same bytes every time, Gemma's ids and template, loadable, and never one token for ever."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from chatd.inference import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.make(folder)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _template(folder: Path) -> Any:
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    return Environment(autoescape=False).from_string(config["chat_template"])  # noqa: S701


def test_model_made_in_another_process_has_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """A seed names one model, on every run: figures and recorded outputs can be compared."""
    script = "import sys, pathlib; from chatd.inference import tiny; tiny.make(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], check=True)
    assert _bytes(tmp_path / "again") == _bytes(model)


def test_model_of_another_seed_has_other_weights_and_the_same_tokenizer(model: Path, tmp_path: Path) -> None:
    """Only the weights are random."""
    tiny.make(tmp_path, seed=1)
    first, second = _bytes(model), _bytes(tmp_path)
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


def test_tokenizer_has_gemmas_special_ids(model: Path) -> None:
    """Code that was tried on the tiny model meets the same ids in the real one."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    expected = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<unused94>": 100, "<unused95>": 101}
    expected |= {"<start_of_turn>": 105, "<end_of_turn>": 106}
    assert {token: tokenizer.token_to_id(token) for token in expected} == expected
    assert tokenizer.get_vocab_size() == json.loads((model / "config.json").read_text())["vocab_size"]


def test_tokenizer_gives_any_text_back_and_reads_numbers_digit_by_digit(model: Path) -> None:
    """Byte fallback covers every character; 6.45 is four tokens, so no learnt number can stand for another."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for text in ("Potassium 6.45 mmol/L", "ação µg/kg/min", "🙂 漢字  two  spaces\n\n- line", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.encode("6.45", add_special_tokens=False).tokens == ["6", ".", "4", "5"]


def test_template_is_gemmas(model: Path) -> None:
    """One <bos>, the system text inside the first user turn, `model` for the assistant, text trimmed."""
    messages = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": " Question?\n"},
        {"role": "assistant", "content": "Answer."},
        {"role": "user", "content": [{"type": "text", "text": "More?"}]},
    ]
    rendered = _template(model).render(messages=messages, bos_token="<bos>", add_generation_prompt=True)
    assert rendered == (
        "<bos><start_of_turn>user\nRules.\n\nQuestion?<end_of_turn>\n<start_of_turn>model\nAnswer.<end_of_turn>\n"
        "<start_of_turn>user\nMore?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_config_has_sliding_and_full_attention(model: Path) -> None:
    """Both kinds of cache are used, as in the real model."""
    config = json.loads((model / "config.json").read_text())
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
    assert len(config["layer_types"]) == config["num_hidden_layers"]
    assert config["sliding_window"] == 512


def test_weights_are_about_as_many_as_the_name_says(model: Path) -> None:
    """1m is a million parameters, within half; the header and the data agree in length."""
    data = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    numbers = sum(math.prod(tensor["shape"]) for tensor in header.values())
    assert 500_000 < numbers < 1_500_000
    assert len(data) == 8 + length + 4 * numbers == 8 + length + max(t["data_offsets"][1] for t in header.values())


def test_mlx_lm_loads_it_and_its_text_varies(model: Path) -> None:
    """The engine's own loader takes it; greedy text is neither one token for ever nor not a number."""
    mlx_lm = pytest.importorskip("mlx_lm")
    loaded, tokenizer = mlx_lm.load(str(model))
    assert tokenizer.eos_token_ids == {1, 106}
    seen = set()
    for question in ("Potassium 6.4?", "O doente tem febre?"):
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        responses = list(mlx_lm.stream_generate(loaded, tokenizer, prompt, max_tokens=40))
        tokens = [response.token for response in responses]
        assert len(set(tokens)) > 15
        assert all(math.isfinite(response.logprobs.max().item()) for response in responses)
        seen.add(tuple(tokens))
    assert len(seen) == 2
