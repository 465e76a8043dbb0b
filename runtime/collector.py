"""Python's cycle collector in a runtime process: seldom, and never over what was loaded.

torch and a model are some hundred thousand objects that stay; looking at all of them stops the engine's thread for some
100 ms. A step makes a few hundred tuples and no cycle, yet at Python's own threshold of 700 every third step pays for a
look.
"""

import gc
from typing import Final

THRESHOLD: Final = (20_000, 20, 20)


def settle() -> None:
    """What is there now stays, and is not looked at again. For when everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLD)
