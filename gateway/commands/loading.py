"""What a terminal shows while runtimes load their weights: a bar for each. Elsewhere nothing is shown."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.console import Console

# How a runtime tells how far it is (`runtime/process.py`).
_LOADING: Final = re.compile(r"loading (.+): (\d{1,3}) %")


class LoadingBars:
    """A context: the bars are there inside, until `stop`. Without models one bar says that something happens."""

    def __init__(self, models: Sequence[str], *, quiet: bool = False, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        screen = Console(stderr=True) if console is None else console
        self._bars = Progress(
            TextColumn("loading {task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            disable=quiet or not screen.is_terminal,
        )
        self._tasks = {model: self._bars.add_task(model, total=100) for model in models}
        if not models:
            self._bars.add_task("the gateway", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def said(self, line: str) -> None:
        """A line of a runtime; what tells no progress is passed over."""
        told = _LOADING.fullmatch(line)
        if told is not None and told[1] in self._tasks:
            self._bars.update(self._tasks[told[1]], completed=int(told[2]))

    def stop(self) -> None:
        """The bars vanish; what comes later is not shown."""
        self._bars.stop()
