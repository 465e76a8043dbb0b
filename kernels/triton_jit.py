"""The only file that imports Triton: `jit` and `tl` for every kernel, with placeholders where Triton is not installed.

A machine without a GPU does not carry Triton (640 MB), but imports the same modules for their references. There `jit`
leaves a kernel that raises TritonMissing when it is launched, and `tl` is an empty name that annotations may use.

A wrapper takes the kernel for CUDA tensors and the reference for all others: `runs_kernel` decides. Triton can also
interpret kernels in Python on CPU tensors, which tests use. Two things must then come together, so that it never
happens by accident: TRITON_INTERPRET=1 before this module is imported, and the block `with interpreting():`.

Every file with kernels exports `compile_cases()`: the specialisations that its launches produce, with constants from
the same functions. Tests compile them all for sm_80 and sm_90 without a GPU.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch

from kernels.errors import InterpreterMixed, TritonMissing


class _Absent:
    """Stands for a part of Triton: attributes are more of it, and calling it or launching it is an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "_Absent":
        return _Absent(f"{self._name}.{name}")

    def __getitem__(self, grid: object) -> "_Absent":
        return self

    def __call__(self, *arguments: object, **named: object) -> None:
        raise TritonMissing(f"{self._name} needs Triton: pip install 'lorikeet[gpu]'")


try:
    import triton
except ImportError:
    triton = None

tl: Any = _Absent("triton.language") if triton is None else triton.language
triton_module: Any = triton  # for benches, which hand it to other projects' kernels; None where it is not installed

# A kernel's parameters: what stands for a pointer or a number while it is compiled, and what is a constant of it.
# Triton reads these annotations: it lets kernels name its own classes only, and its interpreter looks for the very
# word "constexpr".
if TYPE_CHECKING:
    Pointer: TypeAlias = Any
    Number: TypeAlias = Any
    constexpr: TypeAlias = Any
else:
    Pointer = Number = tl.tensor
    constexpr = tl.constexpr

HAS_TRITON: Final[bool] = triton is not None
IS_INTERPRETED: Final[bool] = HAS_TRITON and bool(triton.knobs.runtime.interpret)

_POINTERS: Final[dict[torch.dtype, str]] = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or a placeholder. The result is launched as `kernel[grid](arguments, num_warps=...)`."""
    return triton.jit(function) if HAS_TRITON else _Absent(function.__name__)


class _Switch:
    """Whether CPU tensors go through kernels. One per process: kernels are interpreted on the thread that calls."""

    on = False


@contextmanager
def interpreting() -> Iterator[None]:
    """Within this block kernels run on CPU tensors, in Triton's interpreter. Raises InterpreterMixed."""
    if not IS_INTERPRETED:
        raise InterpreterMixed("interpreting() needs Triton, and TRITON_INTERPRET=1 before kernels are imported")
    before, _Switch.on = _Switch.on, True
    try:
        yield
    finally:
        _Switch.on = before


def runs_kernel(tensor: torch.Tensor) -> bool:
    """Whether an operation on this tensor is the kernel's, not the reference's. Raises InterpreterMixed."""
    if tensor.is_cuda and IS_INTERPRETED:
        raise InterpreterMixed("TRITON_INTERPRET is set: kernels would run in Python on a GPU's tensors; unset it")
    return tensor.is_cuda or _Switch.on


_HOPPER: Final = 9


def launches_early(tensor: torch.Tensor) -> bool:
    """Whether a kernel for this tensor is launched while the one before it in the queue still runs (programmatic
    dependent launch, from sm_90 on), which saves the time in which the device would have set it up. Such a kernel calls
    `gdc_wait` before it touches what kernels of its step write or read; what the step found in place (weights, tiles)
    it may read before. Programs without work may end without waiting, as long as one of the launch waits: whoever comes
    after waits for that one. So of two neighbours one at least must be launched late, or have work in all programs."""
    return tensor.is_cuda and _capability(tensor.device.index or 0) >= _HOPPER


@functools.cache
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


def pointer(dtype: torch.dtype) -> str:
    """How Triton writes a pointer to this dtype in a signature."""
    return _POINTERS[dtype]


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below `number` (1 for 0)."""
    return 1 << max(0, number - 1).bit_length()


def cdiv(number: int, by: int) -> int:
    """Division that rounds up."""
    return -(-number // by)


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of a kernel.

    name: unique within the module. types: run-time parameters, "*bf16" (see `pointer`) or "i32". constants: the
    constexpr parameters. divisible: integers that are multiples of 16 (pointers always are). tensor_cores: what dots
    must become, "mma" where tiles have 16 rows, "wgmma" where sm_90 should use its own (sm_80 then has mma), "none"
    where there must be no such instruction. archs: the architectures that it is launched on.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: frozenset[str] = field(default_factory=frozenset)
    tensor_cores: Literal["none", "mma", "wgmma"] = "none"
    archs: tuple[int, ...] = (80, 90)
