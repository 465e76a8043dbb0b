"""Punica's CUDA kernels, built from its sources by `infra/gpu_peers.sh` behind a C door (`punica_door.cu`).

"bgmv", one row after another: its form for decoding. "sgmv", by segments: its own shrink and CUTLASS's grouped product,
which stands in for the shrink too at rank 8, that its own does not have. Both add to what is there, so the rank
intermediate is zeroed first, as Punica's Python does; pointers and segments are made once a step.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from kernels.bench.peers.base import Operation, PeerMissing
from kernels.bench.sgmv_points import Problem

_WIDE: Final = (4096, 11008)
_SHRINK_BYTES: Final = 8 * 1024**2


class _Door:
    """The built library."""

    def __init__(self, root: Path) -> None:
        path = root / "punica.so"
        if not path.exists():
            raise PeerMissing(f"{root.name}/punica.so is not there (infra/gpu_peers.sh)")
        try:
            self.library = ctypes.CDLL(str(path))
        except OSError as error:
            raise PeerMissing(f"punica.so: {error}") from error
        self.library.punica_tmp_size.restype = ctypes.c_int64

    def check(self, problem: Problem, ranks: Sequence[int]) -> None:
        """Raises PeerMissing for what was not compiled."""
        point = problem.point
        if problem.dtype != torch.bfloat16 or problem.device.type != "cuda":
            raise PeerMissing("Punica's kernels were built for bf16 on a CUDA device")
        if {point.in_features, point.out_features} - set(_WIDE) or point.rank not in ranks:
            raise PeerMissing(f"Punica's kernels were built for {_WIDE} and ranks {tuple(ranks)}")

    def call(self, name: str, tensors: Sequence[torch.Tensor], *numbers: int) -> None:
        """One launch on the current stream. Raises RuntimeError."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        error = getattr(self.library, name)(*pointers, *map(ctypes.c_int64, numbers), stream)
        if error:
            raise RuntimeError(f"{name} failed with {error}")


class Bgmv:
    """root: the folder that holds `punica.so`."""

    def __init__(self, root: Path) -> None:
        self._door = _Door(root)

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        self._door.check(problem, (8, 16, 32, 64))
        slots = torch.tensor(problem.slots, device=problem.device)
        return [self._operation(problem, index, slots) for index in range(problem.sets)]

    def _operation(self, problem: Problem, index: int, slots: torch.Tensor) -> Operation:
        x, y, a, point = problem.x[index], problem.y[index], problem.a[index], problem.point
        b = problem.b[index].transpose(1, 2).contiguous()

        def operation() -> None:
            h = torch.zeros((point.rows, point.rank), dtype=x.dtype, device=x.device)
            self._door.call("punica_bgmv", (h, x, a, slots), point.rows, point.in_features, point.rank)
            self._door.call("punica_bgmv", (y, h, b, slots), point.rows, point.rank, point.out_features)

        return operation


class Sgmv:
    """root: the folder that holds `punica.so`."""

    def __init__(self, root: Path) -> None:
        self._door = _Door(root)

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        self._door.check(problem, (8, 16, 32, 64))
        ends = torch.tensor([0, *problem.lengths]).cumsum(0).to(torch.int32).to(problem.device)
        size = max(_SHRINK_BYTES, self._door.library.punica_tmp_size(ctypes.c_int64(len(problem.lengths))))
        scratch = torch.zeros(size, dtype=torch.uint8, device=problem.device)
        return [self._operation(problem, index, ends, scratch) for index in range(problem.sets)]

    def _operation(self, problem: Problem, index: int, starts: torch.Tensor, scratch: torch.Tensor) -> Operation:
        x, y, point, adapters = problem.x[index], problem.y[index], problem.point, len(problem.lengths)
        own_shrink = point.rank >= 16
        a = problem.a[index] if own_shrink else problem.a[index].transpose(1, 2).contiguous()
        b = problem.b[index]
        a_pointers, b_pointers = (
            torch.tensor([matrix.data_ptr() for matrix in matrices], device=x.device) for matrices in (a, b)
        )
        shrink = "punica_sgmv_shrink" if own_shrink else "punica_sgmv"

        def operation() -> None:
            h = torch.zeros((point.rows, point.rank), dtype=x.dtype, device=x.device)
            self._door.call(shrink, (h, x, a_pointers, starts, scratch), adapters, point.in_features, point.rank)
            self._door.call(
                "punica_sgmv", (y, h, b_pointers, starts, scratch), adapters, point.rank, point.out_features
            )

        # The pointers are numbers to Python: the operation itself must keep the matrices.
        operation.__dict__["matrices"] = (a, b)
        return operation
