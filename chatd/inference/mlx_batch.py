"""mlx-lm's batch generator with the masks of all rows made at once, while the model runs.

The public interface hands each row's logits to a callback of its own before anything is dispatched: one mask after
the other, and the model waits. The private class below does the same work in the other order. It is used only with
the very version of mlx-lm it was written for; any other version runs through the public interface and writes the
same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch

from chatd.inference.mlx_grammar import Vocabulary

#: The version whose ``GenerationBatch`` is overridden here.
KNOWN_VERSION: Final = "0.32.2"
#: Tokens of a prompt between two steps of the running texts: 256 gave gaps of 1.6 s where the default gave 52 s.
PREFILL_STEP_TOKENS: Final = 256


class ChosenLogprob:
    """The log-probability of one row's token, read from the device only when it is wanted."""

    __slots__ = ("_batch", "_row")

    def __init__(self, batch: mx.array, row: int) -> None:
        self._batch = batch
        self._row = row

    def value(self) -> float:
        return float(self._batch[self._row].item())  # type: ignore[arg-type]


def chosen_logprob(logprobs: Any, token: int) -> float:
    """Of a response of either batch: ours gives the one number, mlx-lm's a row over the vocabulary."""
    return logprobs.value() if isinstance(logprobs, ChosenLogprob) else float(logprobs[token].item())


class MaskedBatch(GenerationBatch):  # type: ignore[misc]
    """Rows whose one logits processor is a ``Position``."""

    vocabulary: Vocabulary
    _next_tokens: Any
    _next_logprobs: Any

    def _step(self) -> tuple[list[int], list[Any]]:
        inputs = self._current_tokens = self._next_tokens
        self._current_logprobs = self._next_logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        # From here on the model runs; ``inputs`` was dispatched one step ago and is waited for alone.
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: list[int] = inputs.tolist()
        # In float32: a log-probability near 0 is rounded to nothing in bfloat16.
        positions = [processors[0] for processors in self.logits_processors]
        logits = self.vocabulary.mask(logits.astype(mx.float32), positions, tokens)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._next_tokens = self._sample(logprobs)
        chosen = mx.take_along_axis(logprobs, self._next_tokens[:, None], axis=-1)[:, 0]
        self._next_logprobs = [ChosenLogprob(chosen, row) for row in range(len(self.uids))]
        mx.async_eval(self._next_tokens, chosen)  # type: ignore[no-untyped-call]
        for written, token in zip(self.tokens, tokens, strict=True):
            written.append(token)
        return tokens, self._current_logprobs

    def _sample(self, logprobs: mx.array) -> mx.array:
        samplers = [sampler or self.fallback_sampler for sampler in self.samplers]
        if all(sampler is self.fallback_sampler for sampler in samplers):
            return self.fallback_sampler(logprobs)  # type: ignore[no-any-return]
        return mx.concatenate([sampler(logprobs[row : row + 1]) for row, sampler in enumerate(samplers)], axis=0)


class SeededSampler:
    """Samples at a temperature, by a random sequence of its own: equal seeds give equal tokens, whoever else runs."""

    def __init__(self, temperature: float, seed: int) -> None:
        self._scale = 1.0 / temperature
        self._key = mx.random.key(seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        pair = mx.random.split(self._key)
        self._key = pair[0]
        return mx.random.categorical(logprobs * self._scale, key=pair[1])


def batch_generator(
    model: Callable[..., mx.array],
    vocabulary: Vocabulary,
    stop_ids: Sequence[int],
    *,
    rows: int,
    is_public: bool = False,
) -> Any:
    """A ``BatchGenerator`` for at most ``rows`` texts; prompts are taken in one at a time.

    ``is_public``: only through mlx-lm's public interface, which is also the choice for a version that is not known.
    """
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in stop_ids],
        completion_batch_size=rows,
        prefill_batch_size=1,
        prefill_step_size=PREFILL_STEP_TOKENS,
    )
    if not is_public and version("mlx-lm") == KNOWN_VERSION:
        batch = MaskedBatch.empty(generator.model, generator.sampler)
        batch.vocabulary = vocabulary
        generator._generation_batch = batch
    return generator
