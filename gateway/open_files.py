"""How many files and sockets this process may have open, and how many connections that leaves room for.

Files are opened for logs, uploads and the database while connections are held open by strangers; if these could take
every descriptor, nobody would be answered and nothing could be written.
"""

import logging
import resource
from typing import Final

logger = logging.getLogger(__name__)

MOST_OPEN_FILES: Final = 65_536
FEW_OPEN_FILES: Final = 1024
_FOR_FILES: Final = 256
# The database, the log, listeners and runtimes take two dozen before anybody calls.
_LEAST_FOR_FILES: Final = 64
_LEAST_CONNECTIONS: Final = 8


def raise_limit() -> None:
    """Takes as many as the system lets a process have; the usual soft limit of 1024 is made for `select`.

    Says so when that is few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if max_connections() < FEW_OPEN_FILES - _FOR_FILES:
        logger.warning(
            "this process may have %d files open: room for %d connections; raise the hard limit (ulimit -Hn, or "
            "LimitNOFILE= of a systemd unit)",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            max_connections(),
        )


def max_connections() -> int:
    """What the limit leaves when a quarter of it, at least 64 and at most 256, is kept for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    return max(_LEAST_CONNECTIONS, limit - max(_LEAST_FOR_FILES, min(_FOR_FILES, limit // 4)))
