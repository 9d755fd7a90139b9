"""The half of the mlx engine that lives on its one thread: model, caches, grammars and the step they all take.

Nothing here awaits, and nothing is shared with another thread but the two numbers of progress. MLX binds what it
makes to the thread that made it, so a ``Core`` is made, used and dropped on the same one.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import mlx.core as mx
from mlx_lm.utils import _download, load_model

from chatd.clock import Clock
from chatd.inference.engine import EngineError, EngineInfo, Finished, Generation
from chatd.inference.jobs import FinishReason
from chatd.inference.mlx_batch import SeededSampler, batch_generator, chosen_logprob
from chatd.inference.mlx_grammar import GrammarError, Position, Vocabulary
from chatd.inference.models import card
from chatd.inference.prefixes import Boundary, PrefixStore, boundaries
from chatd.inference.tokens import Tokens

#: Log-probabilities kept of one text; a confidence is told by the first of them as well as by all.
MAX_CHOICE_LOGPROBS: Final = 256
#: A waiting prompt that was passed over this often for shorter ones is next.
_MAX_PASSED: Final = 8
#: Failed steps in a row after which the engine gives up: a new process is the better cure.
MAX_FAILED_STEPS: Final = 3
#: What Gemma 3's configuration leaves out, since it is the default there.
_GEMMA3_CONTEXT_TOKENS: Final = 131_072
_CONTEXT_TOKENS: Final = 8_192


class Told(NamedTuple):
    """What one step says about one text: a piece of it, or that it has ended; ``finished`` has no text in it."""

    id: str
    text: str
    finished: Finished | None = None


class Row:
    """One text, or one beginning to be made ready (``is_warming``). ``begun_ms``: when it was asked for."""

    def __init__(self, generation: Generation, begun_ms: int, *, is_warming: bool = False) -> None:
        self.generation = generation
        self.begun_ms = begun_ms
        self.is_warming = is_warming
        self.tokens = [token for segment in generation.segments for token in segment]
        self.boundaries = boundaries(generation.segments, generation.salt, is_whole=is_warming)
        self.done_tokens = 0
        self.hit_tokens = 0
        self.cache: list[Any] | None = None
        self.uid: int | None = None
        self.base_tokens = 0
        self.passed = 0
        self.position: Position | None = None
        self.words: Any = None
        self.first_ms: int | None = None
        self.tokens_out = 0
        self.logprobs: list[float] = []
        self.is_cancelled = False

    @property
    def rank(self) -> int:
        """Who is taken in first: urgent texts, texts, then beginnings that nobody waits for."""
        return 2 if self.is_warming else int(not self.generation.is_urgent)

    def ahead(self) -> list[Boundary]:
        """Boundaries whose work is not done yet."""
        return [boundary for boundary in self.boundaries if boundary.tokens > self.done_tokens]

    def rest(self) -> list[list[int]]:
        """What is left of the prompt, cut at its boundaries."""
        cuts = [self.done_tokens, *(boundary.tokens for boundary in self.ahead()), len(self.tokens)]
        parts = [self.tokens[start:end] for start, end in itertools.pairwise(cuts) if start < end]
        # A beginning ends with a token that is never worked on: without one there would be nothing to go on from.
        return [*parts, self.tokens[:1]] if self.is_warming else parts


class Core:
    """The engine's state on its thread. All methods are called there.

    ``steps`` and ``stepped_ms`` may be read by anybody.

    Args:
        rows: How many texts may run at once.
        is_public: Keep to mlx-lm's public interface (see ``mlx_batch``).

    Raises:
        EngineError: The model cannot be loaded.
    """

    def __init__(
        self, model: Path, *, rows: int, prefix_cache_bytes: int, clock: Clock, is_public: bool = False
    ) -> None:
        # A name that is no folder is a hub id, fetched once into the hub's own cache; offline that is an error here.
        folder = Path(_download(str(model)))
        self._model, config = load_model(folder)
        self._tokens = Tokens.load(folder)
        self.stop_ids = _stop_ids(folder, config, self._tokens)
        # One token through the model: what does not run is known now, and Metal has its kernels compiled.
        logits = self._model(mx.array([[self.stop_ids[0]]]))
        mx.eval(logits)
        self._vocabulary = Vocabulary(
            (folder / "tokenizer.json").read_text(encoding="utf-8"),
            logits.shape[-1],
            self.stop_ids,
            self._tokens.special_ids,
        )
        self.info = EngineInfo(
            engine="mlx", model=card(folder), context_tokens=_context_tokens(config), stop_ids=self.stop_ids
        )
        self.vocabulary_size = logits.shape[-1]
        self._rows = rows
        self._clock = clock
        self._is_public = is_public
        self._store: PrefixStore[list[Any]] = PrefixStore(prefix_cache_bytes)
        self._waiting: list[Row] = []
        self._filling: Row | None = None
        self._running: dict[int, Row] = {}
        self._by_id: dict[str, Row] = {}
        self._told: list[Told] = []
        self._generator = self._new_generator()
        self.steps = 0
        self.stepped_ms = clock.monotonic_ms()
        self.prefill_tokens = 0
        self.failed_steps = 0

    def _new_generator(self) -> Any:
        # One row more than texts: a beginning is made ready also while all slots are taken.
        return batch_generator(
            self._model, self._vocabulary, self.stop_ids, rows=self._rows + 1, is_public=self._is_public
        )

    @property
    def is_busy(self) -> bool:
        return bool(self._by_id)

    def submit(self, row: Row) -> None:
        """Take a text; what is wrong with its grammar ends it at the next step."""
        self._by_id[row.generation.id] = row
        self._waiting.append(row)

    def cancel(self, generation_id: str) -> None:
        """End a text at the next step; an unknown id changes nothing."""
        if (row := self._by_id.get(generation_id)) is not None:
            row.is_cancelled = True

    def cancel_all(self) -> None:
        for row in self._by_id.values():
            row.is_cancelled = True

    def step(self) -> list[Told]:
        """One token of every running text and up to ``PREFILL_STEP_TOKENS`` of one prompt. Raises what MLX raises;
        then ``fail`` is due."""
        self._sweep()
        self._take_in()
        if self._running:
            prefilled, decoded = self._generator.next()
            for response in prefilled:
                self._prefilled(response)
            for response in decoded:
                self._decoded(response)
        self.failed_steps = 0
        self.steps += 1
        self.stepped_ms = self._clock.monotonic_ms()
        told, self._told = self._told, []
        return told

    def fail(self, error: str) -> list[Told]:
        """After a step that raised: every text ends with ``error``, and caches are begun anew, since what they hold
        is not known. Raises what MLX raises if even that fails."""
        self.failed_steps += 1
        for row in list(self._by_id.values()):
            self._finish(row, "error", error)
        told, self._told = self._told, []
        self._store.clear()
        self._generator.close()
        self._generator = self._new_generator()
        return told

    def close(self) -> None:
        """Give the memory back."""
        self._store.clear()
        self._generator.close()
        self._generator = self._model = None
        mx.clear_cache()

    # --- a step, in its order ---

    def _sweep(self) -> None:
        """End what is cancelled, past its deadline or out of its grammar; one removal for all."""
        now_ms = self._clock.monotonic_ms()
        uids: list[int] = []
        for row in list(self._by_id.values()):
            deadline_ms = row.generation.deadline_ms
            if row.is_cancelled:
                reason: FinishReason = "cancelled"
            elif deadline_ms is not None and now_ms >= deadline_ms:
                reason = "deadline"
            elif row.position is not None and row.position.error:
                reason = "error"
            else:
                continue
            if row.uid is not None:
                uids.append(row.uid)
            self._finish(row, reason, row.position.error if reason == "error" and row.position else "")
        if uids:
            self._generator.remove(uids)

    def _take_in(self) -> None:
        """Choose the prompt that is worked on next, if none is or if one of a higher rank has come."""
        while self._waiting:
            row = self._next_waiting()
            filling = self._filling
            if filling is not None:
                if row.rank >= filling.rank or self._is_shared_ahead(filling, row):
                    return
                self._park(filling)
            self._waiting.remove(row)
            for other in self._waiting:
                other.passed += other.rank >= row.rank
            if self._insert(row):
                return

    def _next_waiting(self) -> Row:
        """By rank; then who was passed over often, in the order of coming; then the least work, so that a question
        behind a ready beginning does not wait for a long chart."""
        return min(self._waiting, key=lambda row: (row.rank, row.passed < _MAX_PASSED, self._work_tokens(row)))

    def _work_tokens(self, row: Row) -> int:
        if row.passed >= _MAX_PASSED:
            return 0
        found = self._store.longest(row.boundaries)
        return len(row.tokens) - max(row.done_tokens, found.tokens if found else 0)

    def _is_shared_ahead(self, filling: Row, row: Row) -> bool:
        """Whether the boundary that is being worked towards is one of the other row's too: then it waits for it
        instead of doing the same work again."""
        ahead = filling.ahead()
        return bool(ahead) and ahead[0] in row.boundaries and ahead[0] not in self._store

    def _park(self, row: Row) -> None:
        """Put a half-taken prompt aside with what was done for it."""
        assert row.uid is not None  # noqa: S101 - it is in the generator
        row.cache, _ = self._generator.extract_cache([row.uid])[row.uid]
        mx.eval([layer.state for layer in row.cache])
        self._generator.remove([row.uid])
        del self._running[row.uid]
        row.uid = None
        self._filling = None
        self._waiting.append(row)

    def _insert(self, row: Row) -> bool:
        """Hand a prompt to the generator, behind the longest beginning that is at hand; False if it ended here."""
        if (found := self._store.use(row.boundaries)) is not None and found[0].tokens > row.done_tokens:
            row.done_tokens, row.cache = found[0].tokens, found[1]
            row.hit_tokens = found[0].tokens
        if row.is_warming and not row.ahead():
            self._finish(row, "stop")
            return False
        generation = row.generation
        try:
            if row.position is None:
                row.position = Position(self._vocabulary, generation.grammar)
        except GrammarError as error:
            self._finish(row, "error", str(error))
            return False
        if row.words is None:
            row.words = self._tokens.stream()
        sampler = None
        if generation.temperature > 0:
            seed = secrets.randbits(32) if generation.seed is None else generation.seed
            sampler = SeededSampler(generation.temperature, seed)
        [row.uid] = self._generator.insert_segments(
            [row.rest()],
            max_tokens=[generation.max_tokens],
            caches=[row.cache],
            samplers=[sampler],
            logits_processors=[[row.position]],
        )
        row.base_tokens, row.cache = row.done_tokens, None
        self._running[row.uid] = row
        self._filling = row
        return True

    def _prefilled(self, response: Any) -> None:
        row = self._running[response.uid]
        if response.end_of_prompt:
            self._filling = None
            return
        before_tokens, row.done_tokens = row.done_tokens, row.base_tokens + response.progress[0]
        self.prefill_tokens += row.done_tokens - before_tokens
        for boundary in row.boundaries:
            if boundary.tokens == row.done_tokens and boundary not in self._store:
                self._keep(row, boundary)
        if row.is_warming and not row.ahead():
            self._generator.remove([row.uid])
            self._finish(row, "stop")

    def _keep(self, row: Row, boundary: Boundary) -> None:
        cache, _ = self._generator.extract_cache([row.uid])[row.uid]
        # Sizes are known before anything is copied; what is not taken is never made.
        if self._store.put(boundary, cache, sum(layer.nbytes for layer in cache)):
            mx.eval([layer.state for layer in cache])

    def _decoded(self, response: Any) -> None:
        row = self._running[response.uid]
        position = row.position
        is_choice = bool(position and position.choices and position.choices.popleft())
        if is_choice and len(row.logprobs) < MAX_CHOICE_LOGPROBS:
            row.logprobs.append(chosen_logprob(response.logprobs, response.token))
        text = ""
        if response.finish_reason != "stop":
            row.tokens_out += 1
            text = row.words.push(response.token)
        if row.first_ms is None:
            row.first_ms = self._clock.monotonic_ms()
        # What the reader still holds at the end is half a character, and stays out.
        if text:
            self._told.append(Told(row.generation.id, text))
        if response.finish_reason is not None:
            self._finish(row, response.finish_reason)

    def _finish(self, row: Row, reason: FinishReason, error: str = "") -> None:
        if row.is_warming:
            found = self._store.longest(row.boundaries)
            row.hit_tokens = found.tokens if found else 0
        self._told.append(
            Told(
                row.generation.id,
                "",
                Finished(
                    reason=reason,
                    text="",
                    tokens_in=len(row.tokens),
                    tokens_out=row.tokens_out,
                    prefix_hit_tokens=row.hit_tokens,
                    ttft_ms=None if row.first_ms is None else row.first_ms - row.begun_ms,
                    generation_ms=self._clock.monotonic_ms() - row.begun_ms,
                    choice_logprobs=tuple(row.logprobs),
                    error=error,
                ),
            )
        )
        del self._by_id[row.generation.id]
        if row.uid is not None:
            self._running.pop(row.uid, None)
        if row is self._filling:
            self._filling = None
        if row in self._waiting:
            self._waiting.remove(row)


def _stop_ids(folder: Path, config: dict[str, Any], tokens: Tokens) -> tuple[int, ...]:
    """Every id that ends a turn, by the template and by the model's own files."""
    found = set(tokens.stop_ids)
    generation = folder / "generation_config.json"
    declared = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    for source in (config, declared):
        ids = source.get("eos_token_id")
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if not found:
        raise EngineError("the model's files name no token that ends a text")
    return tuple(sorted(found))


def _context_tokens(config: dict[str, Any]) -> int:
    text: dict[str, Any] = config.get("text_config", config)
    default = _GEMMA3_CONTEXT_TOKENS if str(config.get("model_type", "")).startswith("gemma3") else _CONTEXT_TOKENS
    return int(text.get("max_position_embeddings", default))


def segments_error(segments: Sequence[Sequence[int]], vocabulary_size: int) -> str:
    """Why a prompt cannot be taken, or "". An id outside of the vocabulary would read memory that is not a token's."""
    if not any(segments):
        return "a prompt without tokens"
    if any(not 0 <= token < vocabulary_size for segment in segments for token in segment):
        return "a prompt with ids outside of the vocabulary"
    return ""
