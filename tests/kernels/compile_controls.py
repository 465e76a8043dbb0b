"""Kernels that show what tier 3 would say of a spill, and of each kind of dot: the controls of `test_compiled`."""

from kernels.triton_jit import CompileCase, Number, Pointer, constexpr, jit, tl


@jit
def _product_kernel(a: Pointer, b: Pointer, c: Pointer, ROWS: constexpr, COLUMNS: constexpr, INNER: constexpr) -> None:
    rows, columns, inner = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, INNER)
    left = tl.load(a + rows[:, None] * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * COLUMNS + columns[None, :])
    tl.store(c + rows[:, None] * COLUMNS + columns[None, :], tl.dot(left, right))


@jit
def _chain_kernel(a: Pointer, b: Pointer, c: Pointer, steps: Number, ROWS: constexpr, COLUMNS: constexpr) -> None:
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        left = tl.load(a + (step * ROWS + rows[:, None]) * COLUMNS + columns[None, :])
        right = tl.load(b + (step * COLUMNS + columns[:, None]) * COLUMNS + columns[None, :])
        twice = tl.dot(left, right).to(tl.bfloat16)
        acc = tl.dot(twice, right, acc)
    tl.store(c + rows[:, None] * COLUMNS + columns[None, :], acc)


@jit
def _hoard_kernel(a: Pointer, c: Pointer, TILE: constexpr) -> None:
    at = tl.arange(0, TILE)
    values = tl.load(a + at)
    total = tl.sum(values, 0)
    tl.store(c + at, values / total)


def compile_cases() -> tuple[CompileCase, ...]:
    """Three kinds of dot, one whose result is the next one's operand, and a tile that no register file holds."""
    chain = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "steps": "i32"}
    square = {"ROWS": 64, "COLUMNS": 64}
    dot = {"a": "*bf16", "b": "*bf16", "c": "*fp32"}
    return (
        CompileCase("mma", _product_kernel, dot, {"ROWS": 16, "COLUMNS": 64, "INNER": 64}),
        CompileCase("wgmma", _product_kernel, dot, {"ROWS": 64, "COLUMNS": 64, "INNER": 64}),
        CompileCase("small", _product_kernel, dot, {"ROWS": 16, "COLUMNS": 16, "INNER": 8}),
        CompileCase("chain", _chain_kernel, chain, square, num_stages=1),
        CompileCase("pipelined", _chain_kernel, chain, square, num_stages=3),
        CompileCase("spill", _hoard_kernel, {"a": "*fp32", "c": "*fp32"}, {"TILE": 16384}, num_warps=1),
    )
