"""Kernels that show what tier 3 would say of a spill, and of each kind of dot: the controls of `test_compiled`."""

from kernels.triton_jit import CompileCase, Pointer, constexpr, jit, tl


@jit
def _product_kernel(a: Pointer, b: Pointer, c: Pointer, ROWS: constexpr, COLUMNS: constexpr, INNER: constexpr) -> None:
    rows, columns, inner = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, INNER)
    left = tl.load(a + rows[:, None] * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * COLUMNS + columns[None, :])
    tl.store(c + rows[:, None] * COLUMNS + columns[None, :], tl.dot(left, right))


@jit
def _hoard_kernel(a: Pointer, c: Pointer, TILE: constexpr) -> None:
    at = tl.arange(0, TILE)
    values = tl.load(a + at)
    total = tl.sum(values, 0)
    tl.store(c + at, values / total)


def compile_cases() -> tuple[CompileCase, ...]:
    """Three kinds of dot, and a tile that no register file holds."""
    dot = {"a": "*bf16", "b": "*bf16", "c": "*fp32"}
    return (
        CompileCase("mma", _product_kernel, dot, {"ROWS": 16, "COLUMNS": 64, "INNER": 64}),
        CompileCase("wgmma", _product_kernel, dot, {"ROWS": 64, "COLUMNS": 64, "INNER": 64}),
        CompileCase("small", _product_kernel, dot, {"ROWS": 16, "COLUMNS": 16, "INNER": 8}),
        CompileCase("spill", _hoard_kernel, {"a": "*fp32", "c": "*fp32"}, {"TILE": 16384}, num_warps=1),
    )
