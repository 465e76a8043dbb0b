"""What every row of a batch is held against before a device sees it: a wrong index would read or write the cache of
another sequence, and the CPU's kernels check nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.batch import PENDING, Row
from runtime.errors import RunnerMisused


@dataclass(frozen=True)
class RowLimits:
    """Sizes of the cache and the model."""

    num_blocks: int
    block_tokens: int
    max_positions: int
    vocab_size: int

    def check(self, rows: Sequence[Row], *, ahead: bool = False) -> None:
        """ahead: one token that follows a sampled one may be PENDING, and the blocks are looked at by who copies them
        (`device_step.py`). Raises RunnerMisused."""
        if not rows:
            raise RunnerMisused("a step without rows")
        size, last_slot = self.block_tokens, rows[0].slot
        for row in rows:
            count, end = len(row.token_ids), row.start + len(row.token_ids)
            if row.slot < last_slot:
                raise RunnerMisused("rows are not ordered by slot")
            last_slot = row.slot
            if count < 1 or row.start < 0 or end > self.max_positions:
                raise RunnerMisused(f"sequence {row.sequence_id}: positions {row.start}..{end}")
            needed = -(-end // size)
            if len(row.block_table) < needed:
                raise RunnerMisused(f"sequence {row.sequence_id}: {len(row.block_table)} blocks, {needed} needed")
            if not ahead and (min(row.block_table) < 0 or max(row.block_table) >= self.num_blocks):
                raise RunnerMisused(f"sequence {row.sequence_id}: a block outside the cache")
            if ahead and count == 1 and row.token_ids[0] == PENDING:
                continue
            if min(row.token_ids) < 0 or max(row.token_ids) >= self.vocab_size:
                raise RunnerMisused(f"sequence {row.sequence_id}: a token outside the vocabulary")
