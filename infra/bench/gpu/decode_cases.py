"""The decode steps that are measured: how many rows, and which of them use which adapter.

base        no adapter                d8          eight adapters, as many rows each
zipf        Punica's: each adapter has two thirds of the rows that are left (exponent 1.5)
"""

from typing import NamedTuple

from infra.bench.gpu.settings import Setting
from kernels.bench.sgmv_points import lengths

# Where the design's target for many adapters is: 16 rows, r16, identical, zipf and distinct.
_JUDGED_BATCH = 16
_JUDGED_RANK = 16


class Case(NamedTuple):
    """One kind of step. lengths: rows of each adapter, () for the base alone; their sum is the batch."""

    batch: int
    kind: str
    rank: int = 0
    lengths: tuple[int, ...] = ()

    def __str__(self) -> str:
        rank = f".r{self.rank}" if self.rank else ""
        return f"decode.b{self.batch}{rank}.{self.kind}"

    @property
    def adapter_rows(self) -> int:
        """Ranks of the step's adapters added up."""
        return self.rank * len(self.lengths)

    @property
    def base(self) -> "Case":
        """The same rows without adapters."""
        return Case(self.batch, "base")


def distinct(batch: int, rank: int, count: int) -> Case:
    """As equal shares as there are."""
    shares = tuple(batch // count + (index < batch % count) for index in range(count))
    return Case(batch, f"d{count}", rank, shares)


def cases(setting: Setting) -> list[Case]:
    """In the order of their worth: time may be up before the last."""
    found = [Case(batch, "base") for batch in setting.batches]
    for rank in setting.ranks:
        found += [
            distinct(batch, rank, count) for batch in setting.batches for count in setting.distinct if count <= batch
        ]
        if rank == _JUDGED_RANK:
            found += [Case(_JUDGED_BATCH, "base"), distinct(_JUDGED_BATCH, rank, 1)]
            found.append(Case(_JUDGED_BATCH, "zipf", rank, tuple(lengths("zipf", _JUDGED_BATCH))))
            found.append(distinct(_JUDGED_BATCH, rank, _JUDGED_BATCH))
    return found


def overhead_target(case: Case) -> float | None:
    """The share of the base's step that adapters may add, None where the design names none."""
    if case.rank != _JUDGED_RANK or case.batch > _JUDGED_BATCH:
        return None
    if case.kind in ("d1", "zipf"):
        return 0.04
    return 0.10 if len(case.lengths) == case.batch == _JUDGED_BATCH else None
