"""What a case is: it takes a stage and an effort, and says its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from infra.bench.rows import Row
from infra.bench.shapes import DISTINCT
from infra.bench.stage import Stage

PROMPT_TOKENS: Final = 32
NAMES: Final[list[str | None]] = [adapter.name for adapter in DISTINCT]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds that count, and tokens of each answer."""

    rounds: int
    tokens: int


Case = Callable[[Stage, Effort], list[Row]]
