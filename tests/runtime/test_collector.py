"""In a process of its own: what is frozen in the tests' would stay frozen."""

import subprocess
import sys

SCRIPT = """
import gc, torch
from runtime.collector import THRESHOLD, settle

class Kept:
    pass

kept = [Kept() for _ in range(1000)]
settle()
assert gc.get_threshold() == THRESHOLD
assert gc.get_freeze_count() > 50_000, gc.get_freeze_count()
assert len(gc.get_objects()) < 1000, len(gc.get_objects())
lost = Kept()
lost.itself = lost
del lost
assert gc.collect() > 0  # garbage of later is still found
"""


def test_what_was_loaded_is_not_looked_at_again() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
