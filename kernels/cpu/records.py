"""What one operation of a program is: a row of integers (addresses, strides in bytes, sizes) and one of fp32 numbers.

Each operation reads the columns that it needs (`operations.py`, `attention.py`); `Record` names them. A program is an
array of such rows, made once for a model: what differs from step to step comes as a `Step`.
"""

from typing import Any, Final, NamedTuple

import numpy as np

# Operations.
EMBED, PROJECT, HEADS, ATTEND, WEAVE, FINISH, GATE, GATHER, CAP, CHOOSE = range(10)

# Columns of all operations.
KIND, X, X_STRIDE, Y, Y_STRIDE, WEIGHT, INPUTS, OUTPUTS, BIAS = range(9)
NORM, OUT_NORM, NORMED, NORMED_STRIDE = range(9, 13)
COS, SIN, CACHE, NUM_HEADS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, WINDOW = range(13, 21)
GELU, SAMPLED = range(21, 23)
# The group's part of the adapter pool; SLICES is 0 for a projection that no adapter changes.
A, A_SLICE, B, SCALING, SCALING_STRIDE, TOUCHED, TOUCHED_STRIDE, SLICES = range(23, 31)
SLICE_WIDTH = 31  # and the two after it
SHRUNK, SHRUNK_STRIDE, SHRUNK_SLICE = range(34, 37)
PACKED = 37  # where X is packed when it has many rows (`many_rows.py`)
COLUMNS: Final = 38

# Numbers of all operations.
EPS, SCALE, SOFT_CAP = range(3)
NUMBERS: Final = 3

# Columns of the arrays of a step.
TOKEN_ID, POSITION, CELL, SEGMENT = range(4)
FIRST, COUNT, START, TABLE = range(4)
SEGMENT_START, SEGMENT_END, SLOT, ROW_OFFSET, RANK = range(5)


class Step(NamedTuple):
    """One pass over at most `Workspace.tokens` tokens; arrays of int64.

    tokens    [tokens, 4]    id, position, cell of the cache (block * block_tokens + offset), segment or -1
    tiles     [tiles, 4]     first token, how many (at most `attention.TILE_TOKENS`, of one sequence), position of the
                             first, where its block table begins in `blocks`
    blocks    [n]            block tables, one after the other
    segments  [segments, 5]  first token, end, slot, first row of the pool, rank; only those with an adapter
    sampled   [rows]         tokens whose logits are wanted
    best      [rows]         written: `operations.choose`
    """

    tokens: Any
    tiles: Any
    blocks: Any
    segments: Any
    sampled: Any
    best: Any


class Program(NamedTuple):
    """records [operations, COLUMNS] int64, numbers [operations, NUMBERS] fp32."""

    records: Any
    numbers: Any


def program(operations: "list[tuple[dict[int, int], dict[int, float]]]") -> Program:
    """From columns and numbers by index; what is not named is 0."""
    records = np.zeros((len(operations), COLUMNS), np.int64)
    numbers = np.zeros((len(operations), NUMBERS), np.float32)
    for row, (columns, values) in enumerate(operations):
        for column, value in columns.items():
            records[row, column] = value
        for column, number in values.items():
            numbers[row, column] = number
    return Program(records, numbers)
