"""Diagnostics of the program itself, on standard error. (A "log" here is the record of one exchange: `logs/`.)"""

import logging
import sys


def log_to_stderr(level: int) -> None:
    """Our own diagnostics from `level` on; of the libraries' only what is wrong."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("gateway").setLevel(level)
    # A line for each request that is no HTTP would let any stranger fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
