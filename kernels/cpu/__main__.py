"""`python -m kernels.cpu bfloat16 float32`: compiles these kinds of kernels (`vectors.KINDS`) before the first start.

With `--lifeline` it leaves at the end of its standard input, done or not.
"""

import os
import sys
import threading
import time

from kernels.cpu import compiling


def main(arguments: list[str]) -> None:
    """Says what it does; without Numba there is nothing to do."""
    if not compiling.available:
        print("Numba is not installed: there are no CPU kernels to compile")
        return
    from kernels.cpu.executing import prepare
    from kernels.cpu.vectors import KINDS

    if "--lifeline" in arguments:
        arguments.remove("--lifeline")
        threading.Thread(target=_leave_with_input, daemon=True).start()
    for kind in arguments or ["bfloat16"]:
        if kind not in KINDS:
            sys.exit(f"{kind!r} is not a kind of kernels; there are {', '.join(KINDS)}")
        began = time.monotonic()
        prepare(kind)
        took = time.monotonic() - began
        print(f"kernels for {kind}: {took:.1f} s, kept in {compiling.code_folder() or 'no folder'}")


def _leave_with_input() -> None:
    while os.read(0, 4096):  # not sys.stdin, which the end of the process would find locked
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
