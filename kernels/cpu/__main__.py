"""`python -m kernels.cpu bfloat16 float32`: compiles the kernels of these dtypes ahead of the first start."""

import sys
import time

from kernels.cpu import compiling


def main() -> None:
    """Says what it does; without Numba there is nothing to do."""
    if not compiling.available:
        print("Numba is not installed: there are no CPU kernels to compile")
        return
    from kernels.cpu.executing import prepare
    from kernels.cpu.vectors import MARKERS

    for dtype in sys.argv[1:] or ["bfloat16"]:
        if dtype not in MARKERS:
            sys.exit(f"{dtype!r} is not a dtype of weights; there are {', '.join(MARKERS)}")
        began = time.monotonic()
        prepare(MARKERS[dtype])
        print(
            f"kernels for {dtype}: {time.monotonic() - began:.1f} s, kept in {compiling.code_folder() or 'no folder'}"
        )


if __name__ == "__main__":
    main()
