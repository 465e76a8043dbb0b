"""One asyncio lock per key, gone when nobody holds or awaits it: memory follows what is in use, not what was seen."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """`async with locks.of(key):` excludes other holders of the same key in this event loop."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """The lock of `key`; every concurrent caller gets the same one."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
