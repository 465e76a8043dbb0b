"""What a runner holds of its base, and so can tell of it: the same whichever device the base is on.

`runner.py` and `device_runner.py` set the three parts when they are made; nothing here changes them.
"""

from runtime.layers.kv_cache import KVCache
from runtime.layers.row_limits import RowLimits
from runtime.models.decoder import Decoder
from storage.geometry import Geometry


class HeldBase:
    """The decoder with its weights, the cache of its keys and values, and what a row may ask of both."""

    _decoder: Decoder
    _cache: KVCache
    _limits: RowLimits

    @property
    def geometry(self) -> Geometry:
        """Of the base."""
        return self._decoder.config.geometry

    @property
    def num_blocks(self) -> int:
        """Of the cache."""
        return self._cache.num_blocks

    @property
    def num_parameters(self) -> int:
        """Of the base."""
        return self._decoder.num_parameters

    @property
    def vocab_size(self) -> int:
        """Of the base."""
        return self._decoder.config.vocab_size

    @property
    def max_sequence_tokens(self) -> int:
        """What the model was made for, or less when the whole cache holds less."""
        return self._limits.max_positions

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Of the base."""
        return self._decoder.config.eos_token_ids
