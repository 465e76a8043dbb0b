"""Which full blocks of keys and values mean the same, so that a later sequence need not compute them again.

A block is known by a chain of hashes: key 0 hashes account and adapter digest under a secret of this process, key i
hashes key i - 1 and the tokens of block i. Equal keys so mean equal account, weights and tokens from the first one
on: another account, or other weights under the same name, never finds a block, nor can anybody guess a key.
A sequence's keys are made once, as its blocks fill, and stay with it. The blocks themselves belong to `BlockPool`.
"""

import hashlib
import json
from array import array

from runtime.blocks import BlockPool
from runtime.sequence import Sequence


class PrefixCache:
    """Not thread-safe: the engine thread owns it. `secret`: 32 random bytes; None switches the cache off.

    num_hit_tokens of num_prompt_tokens, over all sequences that started, needed no computing.
    """

    def __init__(self, blocks: BlockPool, secret: bytes | None) -> None:
        self._blocks, self._secret = blocks, secret
        self.num_hit_tokens = self.num_prompt_tokens = 0

    def find(self, sequence: Sequence) -> list[int]:
        """The cached blocks that `sequence` may begin with. Its last token is never among them: it gives the logits."""
        if self._secret is None:
            return []
        num_blocks = (len(sequence.tokens) - 1) // self._blocks.block_tokens
        self._extend(sequence, self._secret, num_blocks)
        return self._blocks.find(sequence.block_keys[:num_blocks])

    def started(self, sequence: Sequence) -> None:
        """Counts a sequence that starts for the first time."""
        self.num_hit_tokens += sequence.cached_tokens
        self.num_prompt_tokens += sequence.prompt_tokens

    def computed(self, sequence: Sequence, start: int, stop: int) -> None:
        """A step has succeeded that computed positions start .. stop - 1: blocks it filled can be found."""
        if self._secret is None:
            return
        size = self._blocks.block_tokens
        first, end = start // size, stop // size
        if first == end:
            return
        self._extend(sequence, self._secret, end)
        for index in range(first, end):
            self._blocks.publish(sequence.block_table[index], sequence.block_keys[index])

    def _extend(self, sequence: Sequence, secret: bytes, num_blocks: int) -> None:
        keys, size = sequence.block_keys, self._blocks.block_tokens
        if len(keys) >= num_blocks:
            return
        key = keys[-1] if keys else _root(secret, sequence.account_id, sequence.digest)
        for start in range(len(keys) * size, num_blocks * size, size):
            key = hashlib.blake2b(array("Q", sequence.tokens[start : start + size]), key=key, digest_size=32).digest()
            keys.append(key)


def _root(secret: bytes, account_id: str, digest: str | None) -> bytes:
    """JSON keeps the two apart whatever they contain, and tells the base (null) from an adapter."""
    return hashlib.blake2b(json.dumps([account_id, digest]).encode(), key=secret, digest_size=32).digest()
