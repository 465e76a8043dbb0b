"""Diagnostics of the program itself, on standard error. (A "log" here is the record of one exchange: `logs/`.)"""

import logging
import sys


def log_to_stderr(level: int) -> None:
    """Our own diagnostics from `level` on; of the libraries' only what is wrong."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("gateway").setLevel(level)
