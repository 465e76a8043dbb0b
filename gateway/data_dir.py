"""Where things lie in the data folder. One place, so that gateway, runtime and command line agree."""

from pathlib import Path
from typing import NamedTuple

from gateway.settings import Settings


class DataDir(NamedTuple):
    """The folder is private (0700): it holds prompts, answers and adapters."""

    root: Path

    @property
    def database(self) -> Path:
        """SQLite file of accounts, tokens, finetunes and the log index."""
        return self.root / "lorikeet.db"

    @property
    def objects(self) -> Path:
        """The object store when `storage.objects` is "local" and `storage.path` says nothing else."""
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


def object_folder(settings: Settings) -> Path:
    """Where objects lie when `storage.objects` is "local"."""
    chosen = settings.storage.path
    return Path(chosen).expanduser().resolve() if chosen else DataDir(Path(settings.data_dir)).objects
