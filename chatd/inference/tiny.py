"""A small random Gemma 3 text model with a tokenizer of its own: engines can be tried and tested without weights.

It writes nonsense, and under a grammar valid nonsense. Everything about it that chatd relies on is as in the real
model: tensor names, sliding and full attention layers, special tokens at Gemma's ids, byte fallback, the template.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

Size = Literal["1m", "100m"]

_VOCABULARY: Final = 1536
_PAD, _EOS, _BOS, _END_OF_TURN = 0, 1, 2, 106
# As in Gemma 3's tokenizer: seven named ids, then 99 unused ones, then the turn marks at 105 and 106.
_RESERVED: Final = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"),
    *(f"<unused{number}>" for number in range(99)),
    *("<start_of_turn>", "<end_of_turn>"),
)
_IMAGE: Final = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
# Gemma marks these as special; the unused ones, the thinking marks among them, it does not.
_SPECIAL: Final = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *_IMAGE}
_LINE_ENDS: Final = tuple("\n" * number for number in range(1, 9))
_SPACES: Final = tuple("▁" * number for number in range(2, 9))

_ENGLISH: Final = """
patient doctor nurse ward blood pressure heart rate rhythm sinus tachycardia fibrillation infarction elevation troponin
lactate potassium sodium creatinine glucose haemoglobin platelets culture antibiotic sepsis shock stroke bleeding
transfusion sedation ventilation oxygen saturation temperature fever pain chest abdomen head thorax report image result
high low critical normal rising falling stable worse better missing recorded allergy penicillin reaction dose daily
hours minutes before after with without under over from into the and for not this that has been was are should could
consider repeat check verify escalate review against evidence guideline protocol section bundle within one two three
risk benefit bleed clot anticoagulant heparin noradrenaline vasopressin insulin aspirin clopidogrel beta blocker renal
function liver acute chronic history admission surgery emergency intensive care cardiology none known unknown unclear
order schedule notify consult activate calculate call record open form team stat urgent routine signs vital symptoms
"""
_PORTUGUESE: Final = """
doente médico enfermeira serviço sangue tensão arterial frequência cardíaca ritmo sinusal taquicardia fibrilhação
enfarte elevação troponina lactato potássio sódio creatinina glicose hemoglobina plaquetas hemocultura antibiótico
sépsis choque hemorragia transfusão sedação ventilação oxigénio saturação temperatura febre dor torácica abdómen
cabeça relatório imagem resultado alto baixo crítico normal subida descida estável pior melhor falta registado alergia
penicilina reação diária horas minutos antes depois com sem sob sobre para não este esta tem foi são deve pode
considerar repetir verificar rever contra evidência orientação protocolo secção risco benefício coágulo anticoagulante
função renal aguda crónica história admissão cirurgia urgência cuidados intensivos cardiologia nenhum conhecido
desconhecido pedir marcar avisar consultar ativar calcular chamar registar abrir equipa sinais vitais sintomas
interpretação recomendações achados
"""
_LABELS: Final = "Headline: Findings: Interpretation: Recommendations: Missing: Actions: user model"

# Gemma's one template, for what chatd and its tests need: a system text goes before the first user turn's text, turns
# alternate, `assistant` is called `model`, images do not exist here.
_TEMPLATE: Final = """\
{{- bos_token -}}
{%- set turns = messages -%}
{%- set lead = "" -%}
{%- if messages and messages[0]["role"] == "system" -%}
  {%- set lead = messages[0]["content"] ~ "\\n\\n" -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn["role"] == "user") != (loop.index0 is even) -%}
    {{- raise_exception("user and assistant take turns, the user first") -}}
  {%- endif -%}
  {{- "<start_of_turn>" ~ ("model" if turn["role"] == "assistant" else turn["role"]) ~ "\\n" -}}
  {{- lead if loop.first else "" -}}
  {%- if turn["content"] is string -%}
    {{- turn["content"] | trim -}}
  {%- else -%}
    {%- for part in turn["content"] -%}{{- part["text"] | trim -}}{%- endfor -%}
  {%- endif -%}
  {{- "<end_of_turn>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<start_of_turn>model\\n" -}}{%- endif -%}
"""


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Dimensions; all of them divide by 64, so that mlx-lm can quantize them in its usual groups."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int


_SHAPES: Final[dict[Size, _Shape]] = {
    "1m": _Shape(layers=6, hidden=128, heads=4, key_heads=2, head_dim=32, inner=256),
    "100m": _Shape(layers=18, hidden=640, heads=4, key_heads=1, head_dim=256, inner=2048),
}


def make(folder: Path, size: Size = "1m", seed: int = 0, say: Callable[[str], None] = lambda _: None) -> None:
    """Write a model into ``folder``, which is made if needed; files of the same names are replaced.

    Equal arguments give equal bytes. ``say`` gets a line now and then while weights are written: "1m" takes a second
    or two and 5 MB, "100m" 400 MB. The weights are float32: the CPU is where such a model runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = _SHAPES[size]
    _write_json(folder / "config.json", _config(shape))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": _BOS, "eos_token_id": [_EOS, _END_OF_TURN], "pad_token_id": _PAD, "do_sample": False},
    )
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_weights(folder / "model.safetensors", shape, seed, say)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _config(shape: _Shape) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "float32",
        "vocab_size": _VOCABULARY,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_dim,
        "query_pre_attn_scalar": shape.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "layer_types": [
            "sliding_attention" if _is_sliding(layer) else "full_attention" for layer in range(shape.layers)
        ],
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": _PAD,
        "bos_token_id": _BOS,
        "eos_token_id": [_EOS, _END_OF_TURN],
    }


def _is_sliding(layer: int) -> bool:
    return (layer + 1) % 6 != 0


# --- the tokenizer ---


def _tokenizer() -> dict[str, Any]:
    """``tokenizer.json``: the pairs are learnt, the ids are put in order here, so that the special ones are Gemma's."""
    learnt, alphabet = _learn()
    fixed = [*_RESERVED, *_LINE_ENDS, *_SPACES, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet, *_IMAGE]
    known = set(fixed)
    merges: list[list[str]] = [["▁" * number, "▁"] for number in range(1, len(_SPACES) + 1)]
    merged: list[str] = []
    for left, right in learnt:
        if len(fixed) + len(merged) == _VOCABULARY:
            break
        merges.append([left, right])
        if left + right not in known:
            known.add(left + right)
            merged.append(left + right)
    words = fixed[: -len(_IMAGE)] + merged + list(_IMAGE)
    added = [*_RESERVED, *_LINE_ENDS, *_SPACES, *_IMAGE]
    ids = {word: number for number, word in enumerate(words)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[content],
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": content in _SPECIAL,
            }
            for content in sorted(added, key=ids.__getitem__)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                *({"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}),
                *({"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}),
            ],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [_BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def _learn() -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs that byte pair encoding joins, in order, and the single characters, sorted."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    words = [*_ENGLISH.split(), *_PORTUGUESE.split(), *_LABELS.split()]
    # Common words stand first in the lists, so they weigh more; every word comes inside a line and at its beginning.
    corpus = [
        text
        for place, word in enumerate(words)
        for text in (word, f"▁{word}", f"▁{word}", word.capitalize())
        for _ in range(1 + 12 // (1 + place % 40))
    ]
    alphabet = sorted({*"".join(map(chr, range(33, 127))), *"▁°µ²·×±≥≤–ªº€", *"".join(corpus)})
    learner = Tokenizer(models.BPE())
    # Signs are letters of their own, digits too: a number is read digit by digit, as Gemma does.
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\w▁]|[\d_]"), "isolated")
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=_VOCABULARY, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    return [(left, right) for left, right in model["merges"]], alphabet


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": _TEMPLATE,
    }


# --- the weights ---

# What keeps a random model from saying one token for ever: the embedding is small beside what the layers add (1 each),
# or the tied output would repeat the input, and attention looks at few places instead of all alike. The last norm
# makes probabilities as uneven as a trained model's. To a norm's weight Gemma adds 1.
_EMBEDDING: Final = 0.3
_NORMS: Final = {"norm": 9.0, "q_norm": 3.0}


def _tensors(shape: _Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name and shape of every tensor, and how it is filled: the standard deviation, 0 for the norms, which are even."""
    yield "model.embed_tokens.weight", (_VOCABULARY, shape.hidden), _EMBEDDING * shape.hidden**-0.5
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", queries, shape.hidden),
            ("self_attn.k_proj", keys, shape.hidden),
            ("self_attn.v_proj", keys, shape.hidden),
            ("self_attn.o_proj", shape.hidden, queries),
            ("mlp.gate_proj", shape.inner, shape.hidden),
            ("mlp.up_proj", shape.inner, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.inner),
        ):
            yield f"{at}{name}.weight", (rows, columns), columns**-0.5
        for name, width in (
            ("self_attn.q_norm", shape.head_dim),
            ("self_attn.k_norm", shape.head_dim),
            ("input_layernorm", shape.hidden),
            ("post_attention_layernorm", shape.hidden),
            ("pre_feedforward_layernorm", shape.hidden),
            ("post_feedforward_layernorm", shape.hidden),
        ):
            yield f"{at}{name}.weight", (width,), 0.0
    yield "model.norm.weight", (shape.hidden,), 0.0


def _write_weights(path: Path, shape: _Shape, seed: int, say: Callable[[str], None]) -> None:
    import numpy as np

    tensors = list(_tensors(shape))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims, _ in tensors:
        begin, end = end, end + 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": list(dims), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    written, told = 0, 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for number, (name, dims, deviation) in enumerate(tensors):
            if deviation:
                random = np.random.default_rng([seed, number])
                values = random.standard_normal(dims, dtype=np.float32) * np.float32(deviation)
            else:
                values = np.full(dims, _NORMS.get(name.rsplit(".", 2)[-2], 0.0), dtype=np.float32)
            if name == "model.embed_tokens.weight":
                # No text ever says these; the model of itself then neither says them nor ends before its bound.
                values[: len(_RESERVED)] *= np.float32(0.1)
                values[-len(_IMAGE) :] *= np.float32(0.1)
            file.write(values.astype("<f4", copy=False).tobytes())
            written += values.nbytes
            if written - told >= 100_000_000:
                told = written
                say(f"{path.name}: {written // 1_000_000} of {end // 1_000_000} MB")
