"""Texts and pairs of texts to the token ids of an encoder: cut to what it can see, special tokens around them.

A caller's words never become control tokens: a "[SEP]" in a text is six characters. The longer text of a pair is cut.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gateway.text.model_folder import TokenizerFault

Ids = list[tuple[int, ...]]


class EncoderTokenizer:
    """Immutable after construction; safe to use from several threads."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Raises TokenizerFault."""
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFault(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._tokenizer.encode_special_tokens = True

    def texts(self, texts: Sequence[str]) -> Ids:
        """Each with its special tokens. CPU work that grows with the texts."""
        return [tuple(one.ids) for one in self._tokenizer.encode_batch(list(texts))]

    def pairs(self, query: str, contexts: Sequence[str]) -> tuple[Ids, Ids]:
        """(ids, types) of the query with each context."""
        found = self._tokenizer.encode_batch([(query, context) for context in contexts])
        return [tuple(one.ids) for one in found], [tuple(one.type_ids) for one in found]
