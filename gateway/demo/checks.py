"""What the demo promises to check: each printed claim is expected to hold, and one that does not fails the demo."""

from rich.console import Console


class Checks:
    """Counts claims and keeps those that did not hold."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.count = 0
        self.failed: list[str] = []

    def expect(self, holds: bool, claim: str) -> None:
        """Notes a claim; one that does not hold is printed at once."""
        self.count += 1
        if not holds:
            self.failed.append(claim)
            self._console.print(f"[bold red]does not hold:[/] {claim}", highlight=False)
