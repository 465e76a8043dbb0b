"""What torch alone offers: two grouped matrix products, and one product with all adapters at once."""

from collections.abc import Sequence

import torch

from kernels.bench.peers.base import Operation, PeerMissing
from kernels.bench.sgmv_points import Problem


class GroupedProducts:
    """`grouped_mm` twice; it wants bf16 and rows sorted by adapter, which they are."""

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        grouped = getattr(torch.nn.functional, "grouped_mm", None)
        if grouped is None:
            raise PeerMissing(f"torch {torch.__version__} has no grouped_mm")
        ends = torch.tensor(problem.lengths, device=problem.device).cumsum(0).to(torch.int32)

        def operation(index: int) -> None:
            h = grouped(problem.x[index], problem.a[index].transpose(-2, -1), offs=ends)
            problem.y[index].add_(grouped(h, problem.b[index], offs=ends))

        return [lambda index=index: operation(index) for index in range(problem.sets)]  # type: ignore[misc]


class AllSlots:
    """cuBLAS on every row with every adapter of the step, the foreign parts zeroed in between."""

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        rank = problem.point.rank
        owners = torch.arange(len(problem.lengths), device=problem.device).repeat_interleave(rank)
        slots = torch.tensor(problem.slots, device=problem.device)
        own = (slots[:, None] == owners[None, :]).to(problem.dtype)

        def operation(index: int) -> None:
            a, b = problem.a[index].flatten(0, 1), problem.b[index].flatten(0, 1)
            problem.y[index].addmm_((problem.x[index] @ a.T).mul_(own), b)

        return [lambda index=index: operation(index) for index in range(problem.sets)]  # type: ignore[misc]
