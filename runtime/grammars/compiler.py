"""Grammars by llguidance: from a schema or a Lark text to what may be said next. The only file that knows the library.

    GrammarCompiler.compile ──> Compiled ──start──> MatcherConstraint, one per sequence ──allowed_words──> bits per word

Compiling frees the GIL and may take long: it belongs to a worker thread, after a trial in a process of its own
(`sandbox.py`), for it can be neither interrupted nor held to a memory bound. What it builds is lazy: the lexer's
automaton grows while answers are made, and every copy of a matcher grows the same one. So one that has been used for
long is `worn` and compiled anew; at the library's bound it would refuse everybody.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from runtime.errors import GrammarInvalid
from runtime.grammars.bounds import unkept, unkept_in_lark
from runtime.protocol import MAX_GRAMMAR_BYTES, Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# An automaton state takes 0.5 to 2 kB; the other bounds of the library hold a step to a few milliseconds.
_MAX_LEXER_STATES: Final = 50_000
# Tokens after which a matcher is compiled anew for those who come.
_WORN_TOKENS: Final = 8192
_MAX_REASON_CHARS: Final = 300
_MASK_THREADS: Final = 2
# Below this the way to other threads takes longer than the masks.
_PARALLEL_ROWS: Final = 8
# Blanks between the parts of an answer are bounded: a model that likes them would never come to the end. An
# unenforceable keyword is refused rather than passed over.
_JSON_OPTIONS: "Final[JsonCompileOptions]" = {"whitespace_pattern": r"[\x20\x0A\x09]{1,32}", "lenient": False}


class GrammarCompiler:
    """One model's tokenizer, read at the first use. Safe to use from several threads.

    vocab_size: of the model, which may have more words than the tokenizer. eos_token_ids: what ends an answer.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._file, self._vocab_size, self._eos_token_ids = tokenizer_file, vocab_size, tuple(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._reading = threading.Lock()

    def compile(self, grammar: Grammar) -> "Compiled":
        """Blocks, without the GIL. Raises GrammarInvalid, also when the tokenizer cannot be used."""
        if len(grammar.source.encode("utf-8", "surrogatepass")) > MAX_GRAMMAR_BYTES:
            raise GrammarInvalid(f"it is longer than {MAX_GRAMMAR_BYTES} bytes")
        tokenizer = self.warm()
        text = _of_schema(grammar.source) if grammar.kind == "json_schema" else _of_lark(grammar.source)
        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # warms every copy, and finds what can never begin
        if matcher.is_error():
            raise GrammarInvalid(_reason(matcher.get_error()))
        return Compiled(matcher, tokenizer.vocab_size)

    def warm(self) -> LLTokenizer:
        """Reads the tokenizer if that has not been done. Raises GrammarInvalid."""
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
            return self._tokenizer

    def _read_tokenizer(self) -> LLTokenizer:
        try:
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GrammarInvalid("this model's folder has no readable tokenizer.json, which grammars need") from error
        try:
            try:
                return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids))
            except ValueError:  # the numbers do not fit this tokenizer: take those that do
                known = LLTokenizer(text)
                ends = [token for token in self._eos_token_ids if token < known.vocab_size] or known.eos_tokens
                return LLTokenizer(text, n_vocab=max(self._vocab_size, known.vocab_size), eos_token=ends)
        except Exception as error:  # the library raises what its parts raise
            raise GrammarInvalid("this model's tokenizer.json cannot be used for grammars") from error


class Compiled:
    """A grammar that compiled, for any number of sequences. Belongs to the engine thread but for `worn`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._num_tokens = 0
        self._exhausted = False
        self.vocab_size = vocab_size

    @property
    def worn(self) -> bool:
        """Its automaton may be near the bound; from any thread."""
        return self._exhausted or self._num_tokens >= _WORN_TOKENS

    def start(self) -> "MatcherConstraint":
        """A new sequence's place, at the beginning."""
        return MatcherConstraint(self)

    def fresh(self) -> LLMatcher:
        """A copy at the beginning."""
        return self._matcher.deep_copy()

    def used(self, *, failed: bool) -> None:
        """One more token was taken with it, or it failed."""
        self._num_tokens += 1
        self._exhausted = self._exhausted or failed


class MatcherConstraint:
    """See `Constraint`. Copies its matcher when the sequence first runs: those that wait cost nothing."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self._problem: str | None = None

    @property
    def done(self) -> bool:
        """See `Constraint`."""
        return self._problem is None and self._matcher is not None and self._matcher.is_stopped()

    @property
    def problem(self) -> str | None:
        """See `Constraint`."""
        return self._problem

    @property
    def vocab_size(self) -> int:
        """Words that a mask speaks about."""
        return self._compiled.vocab_size

    @property
    def matcher(self) -> LLMatcher:
        """Where the sequence stands."""
        if self._matcher is None:
            self._matcher = self._compiled.fresh()
        return self._matcher

    def take(self, token: int) -> None:
        """See `Constraint`."""
        self.matcher.consume_token(token)
        self._compiled.used(failed=not self.check())

    def check(self) -> bool:
        """Whether the matcher still stands; turns its error into the `problem`."""
        if self._problem is None and self.matcher.is_error():
            self._problem = _reason(self.matcher.get_error())
            self._compiled.used(failed=True)
        return self._problem is None

    def stuck(self) -> None:
        """Nothing that the model could say is allowed."""
        self._problem = self._problem or "no token of this model continues the answer as it must"


class Masks:
    """Fills masks, several at once on threads of its own unless `threads` is 0. One engine, one object."""

    def __init__(self, threads: int = _MASK_THREADS) -> None:
        self._threads = threads
        self._executor: LLExecutor | None = None

    def bits(self, constraints: Sequence[MatcherConstraint], num_words: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """[constraints, num_words / 32]: a set bit for each word that may come next, lowest bit first.

        A constraint that allows no word gets a `problem`. No constraint may be given twice.
        """
        widest = max(num_words, *(constraint.vocab_size for constraint in constraints))
        bits = np.zeros((len(constraints), -(-widest // 32)), np.int32)
        pairs = [(constraint.matcher, line) for line, constraint in enumerate(constraints) if constraint.check()]
        if len(pairs) < _PARALLEL_ROWS or not self._threads:
            for matcher, line in pairs:
                fill_next_token_bitmask(matcher, bits, line)
        else:
            self._executor = self._executor or LLExecutor(self._threads)
            fill_next_token_bitmask_par(self._executor, pairs, bits)
        bits = np.ascontiguousarray(bits[:, : -(-num_words // 32)])
        if num_words % 32:
            bits[:, -1] &= (1 << num_words % 32) - 1
        for line, constraint in enumerate(constraints):
            if not constraint.check() or not bits[line].any():
                constraint.stuck()
        return bits

    def allowed_words(
        self, constraints: Sequence[MatcherConstraint], num_words: int
    ) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """`bits` as [constraints, num_words] booleans."""
        octets = self.bits(constraints, num_words).view(np.uint8)
        return np.unpackbits(octets, axis=1, bitorder="little", count=num_words).view(np.bool_)


def _of_schema(source: str) -> str:
    """Without `x-guidance`, by which a schema could change the rules above. Raises GrammarInvalid."""
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarInvalid("the schema is not JSON, or nested too deeply") from error
    if not isinstance(schema, dict):
        raise GrammarInvalid("the schema must be a JSON object")
    _keep_bounds(unkept(schema))
    plain = source if schema.pop("x-guidance", None) is None else json.dumps(schema)
    try:
        return LLMatcher.grammar_from_json_schema(plain, overrides=_JSON_OPTIONS)
    except ValueError as error:
        raise GrammarInvalid(_reason(str(error))) from error


def _of_lark(source: str) -> str:
    """Raises GrammarInvalid."""
    try:
        _keep_bounds(unkept_in_lark(source))
    except (ValueError, RecursionError) as error:
        raise GrammarInvalid("a schema in it is not JSON, or nested too deeply") from error
    return LLMatcher.grammar_from_lark(source)


def _keep_bounds(bound: str | None) -> None:
    if bound is not None:
        raise GrammarInvalid(f"the schema has a bound that cannot be enforced: {bound} is too large to be exact")


def _reason(error: str) -> str:
    """A clause for the caller from the library's own words, which may run over lines and end in its state."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it cannot be used"]
    first = next((line for line in lines if line.startswith("error: ")), lines[0])  # a regex comes before its error
    if first.startswith("Unimplemented keys: "):
        keys = first.removeprefix("Unimplemented keys: ").strip("[]")
        return f"the schema uses keywords that cannot be enforced: {keys}; leave them out"[:_MAX_REASON_CHARS]
    if first.startswith("NoExtension"):
        return "nothing satisfies it"
    return "".join(char if char.isprintable() else " " for char in first)[:_MAX_REASON_CHARS]
