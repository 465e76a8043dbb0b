"""Ids and secrets: how each is made, and nothing else.

Accounts and tokens: 128 random bits in hex, as wrangler shows account ids. Finetunes: UUIDv4. Logs and requests:
UUIDv7, so that they sort by time. A token's secret is 256 random bits behind the prefix that scanners know.
"""

import hashlib
import os
import re
import secrets
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

# Owns the operator's public adapters. Not random: nobody gets a token of it, and no list shows it.
PUBLIC_ACCOUNT_ID: Final = "cf0b11c0000000000000000000000000"
SECRET_PREFIX: Final = "cfat_"  # noqa: S105 - the public prefix, not a secret
_SECRET = re.compile(r"cfat_[A-Za-z0-9_-]{43}")
_RANDOM_BITS: Final = 74
_PAIRS: Final = struct.Struct("=QH")  # 64 bits and 16, of which ten are used: 74
_FETCHED_BYTES: Final = _PAIRS.size * 256
_STEP: Final = (1 << 40) - 1
_FIRST_BITS: Final = 62  # of the 74 random bits, those that stand behind the variant


class Uuid7:
    """Makes UUIDv7 (RFC 9562), strictly increasing within this object even when the clock stands or goes back.

    State: the last value as one integer, milliseconds above 74 random bits, and random bytes for the next few hundred,
    because asking the system for each id takes longer than making it. Within a millisecond the next value is the last
    plus a random step, so ids stay unguessable from their neighbours.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = 0
        self._random: Iterator[tuple[int, ...]] = iter(())
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """A fork has the same bytes as its parent: it may not use them."""
        self._random = iter(())

    def __call__(self) -> str:
        """The next id, lower-case with dashes. Safe from any thread."""
        now = int(self._clock() * 1000) << _RANDOM_BITS
        with self._lock:
            found = next(self._random, None)
            if found is None:
                self._random = _PAIRS.iter_unpack(secrets.token_bytes(_FETCHED_BYTES))
                found = next(self._random)
            now |= found[0] << 10 | found[1] & 0x3FF
            if now <= self._last:
                now = self._last + 1 + (now & _STEP)  # random bits too, and asked of the system already
            self._last = now
        milliseconds, low = now >> _RANDOM_BITS, now & ((1 << _RANDOM_BITS) - 1)
        high, tail = low >> _FIRST_BITS, low & ((1 << _FIRST_BITS) - 1)
        value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | high << 64 | 2 << 62 | tail
        digits = f"{value:032x}"  # uuid.UUID says the same in three times the time
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


uuid7: Final = Uuid7()


def new_id() -> str:
    """A new account or token id: 32 lower-case hex characters."""
    return secrets.token_hex(16)


def new_finetune_id() -> str:
    """A new finetune id: UUIDv4, lower-case."""
    return str(uuid.uuid4())


def new_secret() -> str:
    """A new token secret; only its digest is ever stored."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def secret_digest(secret: str) -> bytes | None:
    """SHA-256 of a well-formed secret, None for anything that no token can be."""
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None
