"""How many files and sockets this process may have open, and how many connections that leaves room for.

Files are opened for logs, uploads and the database while connections are held open by strangers; if these could take
every descriptor, nobody would be answered and nothing could be written.
"""

import resource
from typing import Final

MOST_OPEN_FILES: Final = 65_536
_FOR_FILES: Final = 256


def raise_limit() -> None:
    """Takes as many as the system lets a process have; the usual soft limit of 1024 is made for `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_connections() -> int:
    """What the limit leaves when a quarter of it, at most 256, is kept for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    return limit - min(_FOR_FILES, limit // 4)
