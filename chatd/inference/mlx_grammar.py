"""What a model may write next, as bits over its vocabulary: the grammar of one text and the tokens nobody may write.

llguidance walks the grammar; this module keeps compiled grammars, one position per text, and the bits for a batch.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

import mlx.core as mx
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray

#: Compiled grammars that are kept; a department has one for each set of proposed actions.
_GRAMMARS: Final = 128
#: Threads for the masks of a batch: a mask takes 0.24 ms at 262,144 tokens, 20 rows share the work.
_THREADS: Final = 4
_WORD_BITS: Final = 32

Words = NDArray[np.uint32]


class GrammarError(Exception):
    """The grammar does not compile for this vocabulary, or a text has left it."""


class Vocabulary:
    """Every token of a model.

    ``tokenizer_json``: the tokenizer's file as text. ``size``: how many logits the model gives, which may be more
    than the tokenizer knows. ``stop_ids``: end a text. ``banned_ids``: never written, under a grammar or without.
    """

    def __init__(self, tokenizer_json: str, size: int, stop_ids: Sequence[int], banned_ids: Iterable[int]) -> None:
        self.size = size
        self.words = (size + _WORD_BITS - 1) // _WORD_BITS
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=size, eos_token=list(stop_ids))
        self._executor = LLExecutor(_THREADS)
        self._compiled: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self.stops = self._bits(stop_ids)
        self.allowed = ~self._bits(set(banned_ids) - set(stop_ids)) & self._bits(range(size))
        self._allowed_mask = mx.array(self._bools(self.allowed[None, :]))

    def _bits(self, ids: Iterable[int]) -> Words:
        flags = np.zeros(self.words * _WORD_BITS, np.uint8)
        flags[list(ids)] = 1
        return np.packbits(flags, bitorder="little").view(np.uint32)

    def _bools(self, words: Words) -> NDArray[np.bool_]:
        """One bool per token of each row."""
        return np.unpackbits(words.view(np.uint8), axis=1, count=self.size, bitorder="little").view(np.bool_)

    def matcher(self, grammar: str) -> LLMatcher:
        """A position at the start of a Lark grammar. Raises GrammarError."""
        key = hashlib.sha256(grammar.encode()).digest()
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
            if compiled.is_error():
                raise GrammarError("the grammar does not compile")
            self._compiled[key] = compiled
            while len(self._compiled) > _GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return compiled.deep_copy()

    def mask(self, logits: mx.array, positions: Sequence[Position], tokens: Sequence[int]) -> mx.array:
        """Logits of a batch with -inf where a token may not follow. ``tokens``: the last one of each row.

        The caller has dispatched the logits: everything here that takes time runs beside the model.
        """
        if not any(position.matcher for position in positions):
            return mx.where(self._allowed_mask, logits, -mx.inf)
        words = np.full((len(positions), self.words), 0xFFFFFFFF, np.uint32)
        walking: list[tuple[LLMatcher, int]] = []
        for row, (position, token) in enumerate(zip(positions, tokens, strict=True)):
            position.take(token)
            if position.matcher is not None and not position.error:
                walking.append((position.matcher, row))
        if len(walking) == 1:
            matcher, row = walking[0]
            matcher.unsafe_compute_mask_ptr(words[row].ctypes.data, self.words * 4)
        elif walking:
            self._executor.unsafe_compute_mask_ptr(walking, words.ctypes.data, self.words * 4, len(positions))
        words &= self.allowed
        counts = np.bitwise_count(words).sum(axis=1)
        for row, position in enumerate(positions):
            if position.matcher is None:
                continue
            if position.error or position.matcher.is_error() or not counts[row]:
                position.error = position.error or "the text has left the grammar"
                words[row] = self.stops
            position.choices.append(bool(counts[row] > 1))
        return mx.where(mx.array(self._bools(words)), logits, -mx.inf)


class Position:
    """Where one text stands in its grammar; without a grammar only the banned tokens are kept out.

    It is also a logits processor of mlx-lm's public interface, for one row at a time. ``choices``: for each token
    that was or is being chosen, and not yet taken by the reader, whether more than one was allowed. ``error``: why
    this text cannot go on.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str | None) -> None:
        self._vocabulary = vocabulary
        self.matcher = None if grammar is None else vocabulary.matcher(grammar)
        self.choices: deque[bool] = deque()
        self.error = ""
        self._is_begun = False

    def take(self, token: int) -> None:
        """Step over a token; the first call stands behind the prompt's last one, which is not of the text."""
        if self._is_begun and self.matcher is not None and not self.error and not self.matcher.consume_token(token):
            self.error = "the text has left the grammar"
        self._is_begun = True

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        # The token first: behind the dispatched model it would be waited for until the model is done.
        token = 0 if self.matcher is None else int(context[-1].item())  # type: ignore[arg-type]
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        return self._vocabulary.mask(logits, (self,), (token,))
