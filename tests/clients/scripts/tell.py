"""Says how each call went, a line of JSON each; whoever started the script reads them."""

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

V4, ACCOUNT, TOKEN = os.environ["V4"], os.environ["ACCOUNT"], os.environ["TOKEN"]
MODEL, TOOL_MODEL, EMBED_MODEL = os.environ["MODEL"], os.environ["TOOL_MODEL"], os.environ["EMBED_MODEL"]
ADAPTERS = os.environ["ADAPTERS"]
V1 = f"{V4}/accounts/{ACCOUNT}/ai/v1"
QUESTION = "What does Molbury sell?"
BASE, PIRATE = "Molbury sells wool.", "Arr! Molbury be sellin' wool, matey."


def call(name: str, work: Callable[[], Any]) -> None:
    """Runs `work`; what it raises is the problem, an AssertionError like any other."""
    problem = None
    try:
        work()
    except Exception:
        problem = traceback.format_exc()[-1500:]
    print(json.dumps({"call": name, "problem": problem}), flush=True)


def raises(kind: type[Exception], work: Callable[[], Any]) -> Any:
    """The exception of that kind that `work` must raise."""
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")
