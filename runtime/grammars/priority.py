"""Compiling gives way to answering: its threads and processes get the processor when the engine leaves some.

Without this, a storm of heavy schemas on few cores takes as much of them as the model does, and every stream stutters.
"""

import contextlib
import os
import sys
import threading
from typing import Final

# At 10 the kernel gives a tenth beside one that has 0; less would let small schemas wait for seconds.
NICENESS: Final = 10


def give_way() -> None:
    """The calling thread, and what it starts from now on, has at least NICENESS. Never raises.

    Only Linux has priorities of threads; elsewhere the main thread stands for its process, and others change nothing.
    """
    if sys.platform == "linux":
        who = threading.get_native_id()
    elif threading.current_thread() is threading.main_thread():
        who = 0
    else:
        return
    with contextlib.suppress(OSError):  # a sandbox that forbids it
        if os.getpriority(os.PRIO_PROCESS, who) < NICENESS:
            os.setpriority(os.PRIO_PROCESS, who, NICENESS)
