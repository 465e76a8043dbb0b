"""Where things lie in the data folder. One place, so that gateway, runtime and command line agree."""

from pathlib import Path
from typing import NamedTuple


class DataDir(NamedTuple):
    """The folder is private (0700): it holds prompts, answers and adapters."""

    root: Path

    @property
    def database(self) -> Path:
        """SQLite file of accounts, tokens, finetunes and the log index."""
        return self.root / "lorikeet.db"

    @property
    def objects(self) -> Path:
        """The object store when `storage.objects` is "local"."""
        return self.root / "objects"

    @property
    def logs(self) -> Path:
        """Write-ahead segments."""
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        """Uploads while they arrive."""
        return self.root / "spool"

    @property
    def admin_socket(self) -> Path:
        """The operator's face while the gateway runs."""
        return self.root / "admin.sock"

    @property
    def serve_lock(self) -> Path:
        """Held by the `lorikeet serve` that owns the folder."""
        return self.root / "serve.lock"

    @property
    def run(self) -> Path:
        """Sockets of the running children."""
        return self.root / "run"

    def tiers(self, index: int) -> Path:
        """The disk tier of one runtime."""
        return self.root / "tiers" / str(index)
