"""Runs a program (`records.py`) on the threads of a team, operation by operation."""

from typing import Any

import numpy as np

from kernels.cpu import records as c
from kernels.cpu.attention import attend
from kernels.cpu.compiling import entry, note_compiled
from kernels.cpu.operations import ask_early, cap, choose, embed, finish, gate, gather, heads, project, weave_rows
from kernels.cpu.team import barrier
from kernels.cpu.vectors import KINDS


@entry
def execute(
    held: Any,
    marker: Any,
    program: Any,
    step: Any,
    control: int,
    thread: int,
    threads: int,
    scratch: int,
    scratch_bytes: int,
    logits: int,
) -> None:
    """Every thread of the team calls this, with its number; it returns when the whole program is done.

    held, marker: see `operations.py`. scratch: bytes for each thread, one after the other. logits: where the sampled
    rows' go.
    """
    scratch += thread * scratch_bytes
    for i in range(len(program.records)):
        r, f = program.records[i], program.numbers[i]
        kind = r[c.KIND]
        if kind == c.PROJECT:
            project(held, marker, r, step, control, thread, threads, scratch, logits)
        elif kind == c.HEADS:
            heads(marker, r, f, step, control, scratch)
        elif kind == c.ATTEND:
            attend(held, marker, r, f, step, control, scratch)
        elif kind == c.FINISH:
            finish(held, marker, r, f, step, control, scratch)
        elif kind == c.GATE:
            gate(held, marker, r, step, control, scratch)
        elif kind == c.EMBED:
            embed(held, r, f, step, control)
        elif kind == c.GATHER:
            gather(held, r, f, step, control)
        elif kind == c.WEAVE:
            weave_rows(held, r, step, control)
        elif kind == c.CAP:
            cap(r, f, step, control, logits)
        else:
            choose(r, step, control, logits)
        if i + 1 < len(program.records) and program.records[i + 1][c.KIND] == c.PROJECT:
            ask_early(held, program.records[i + 1], step, thread, threads)
        barrier(control, threads)


def prepare(kind: str) -> None:
    """Compiles `execute` for one of `vectors.KINDS`, or finds it compiled: fifteen seconds, or a tenth of one."""
    step = c.Step(*(np.zeros(shape, np.int64) for shape in ((0, 4), (0, 4), 0, (0, 5), 0, 0)))
    execute(*KINDS[kind], c.program([]), step, 0, 0, 1, 0, 0, 0)
    note_compiled(kind)
