"""A disk in memory whose power can be cut at any call, for `gateway.logs.disk.Disk`.

After a cut, what was synced survives. Of what was not, each 512-byte sector of each write, each change of length and
each change of the directory is kept or lost on its own. A failed sync drops the dirty sectors, as Linux does, and the
next one reports success. `Faults` says which calls fail; the two `lies_*` are the planted bugs of the controls.
"""

from dataclasses import dataclass, field
from random import Random

from storage.errors import ObjectMissing, StorageFull, StorageUnavailable

SECTOR = 512


class PowerCut(BaseException):
    """The machine is gone: nothing that ran may go on."""


@dataclass
class Faults:
    """Chances per call, and the planted bugs."""

    short_write: float = 0.0
    no_room: float = 0.0
    write_error: float = 0.0
    sync_error: float = 0.0
    lies_sync: bool = False
    lies_sync_dir: bool = False


@dataclass
class _Inode:
    """`data` is what processes see, `durable` what is on the medium; `dirty` holds the sectors written in between."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)


class SimDisk:
    """One directory. `cut_after` calls the power goes."""

    def __init__(self, random: Random, faults: Faults, cut_after: int | None = None) -> None:
        self.random = random
        self.faults = faults
        self.calls_left = cut_after
        self.num_calls = 0
        self.live: dict[str, _Inode] = {}
        self.durable: dict[str, _Inode] = {}

    def names(self) -> list[str]:
        self.called()
        return list(self.live)

    def create(self, name: str) -> "SimFile":
        self.called()
        if name in self.live:
            raise StorageUnavailable(name)
        self.live[name] = _Inode()
        return SimFile(self, self.live[name])

    def size(self, name: str) -> int:
        self.called()
        return len(self._inode(name).data)

    def read(self, name: str, start: int, length: int) -> bytes:
        self.called()
        return bytes(self._inode(name).data[start : start + length])

    def truncate(self, name: str, length: int) -> None:
        file = SimFile(self, self._inode(name))
        file.truncate(length)
        file.sync()

    def rename(self, old: str, new: str) -> None:
        self.called()
        self.live[new] = self._inode(old)
        del self.live[old]

    def remove(self, name: str) -> None:
        self.called()
        self.live.pop(name, None)

    def sync_dir(self) -> None:
        self.called()
        if not self.faults.lies_sync_dir:
            self.durable = dict(self.live)

    def after_power_cut(self, random: Random, faults: Faults, cut_after: int | None = None) -> "SimDisk":
        """The disk as the next start finds it."""
        disk = SimDisk(random, faults, cut_after)
        for name in sorted({*self.live, *self.durable}):
            inode = self.live.get(name) if random.random() < 0.5 else self.durable.get(name)
            if inode is not None:
                disk.live[name] = _Inode(bytearray(_torn(inode, random)))
        for name, inode in disk.live.items():
            inode.durable = bytearray(inode.data)
            disk.durable[name] = inode
        return disk

    def after_kill(self, random: Random, faults: Faults, cut_after: int | None = None) -> "SimDisk":
        """The disk as the next start finds it when only the process died: everything written, nothing more durable."""
        disk = SimDisk(random, faults, cut_after)
        disk.live, disk.durable = dict(self.live), dict(self.durable)
        return disk

    def called(self) -> None:
        self.num_calls += 1
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise PowerCut
            self.calls_left -= 1

    def _inode(self, name: str) -> _Inode:
        if name not in self.live:
            raise ObjectMissing(name)
        return self.live[name]


class SimFile:
    """An open file."""

    def __init__(self, disk: SimDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write(self, data: memoryview, offset: int) -> int:
        disk, inode = self._disk, self._inode
        length = len(data)
        if disk.random.random() < disk.faults.short_write:
            length = disk.random.randint(1, length)
        if disk.random.random() < disk.faults.no_room:
            length = disk.random.randint(0, length - 1)
            self._put(data[:length], offset)
            raise StorageFull("no space left on device")
        failed = disk.random.random() < disk.faults.write_error
        self._put(data[:length], offset)
        disk.called()
        if failed:
            raise StorageUnavailable("input/output error")
        assert len(inode.data) >= offset + length
        return length

    def sync(self) -> None:
        disk, inode = self._disk, self._inode
        disk.called()
        if disk.faults.lies_sync:
            return
        if disk.random.random() < disk.faults.sync_error:
            # The pages are marked clean and their content may or may not have arrived.
            inode.durable = bytearray(_torn(inode, disk.random))
            inode.dirty.clear()
            raise StorageUnavailable("input/output error")
        if inode.dirty or len(inode.data) != len(inode.durable):
            durable = bytearray(inode.durable[: len(inode.data)].ljust(len(inode.data), b"\0"))
            for sector in inode.dirty:
                place = slice(sector * SECTOR, (sector + 1) * SECTOR)
                durable[place] = inode.data[place]
            inode.durable = durable
            inode.dirty.clear()

    def truncate(self, length: int) -> None:
        self._disk.called()
        del self._inode.data[length:]

    def close(self) -> None:
        self._disk.called()

    def _put(self, data: memoryview, offset: int) -> None:
        inode = self._inode
        if len(inode.data) < offset:
            inode.data.extend(b"\0" * (offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        if data:
            inode.dirty.update(range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1))


def _torn(inode: _Inode, random: Random) -> bytes:
    """What the medium holds when the un-synced sectors and the length each arrived or did not."""
    lengths = (len(inode.durable), len(inode.data))
    result = bytearray(inode.durable)
    for sector in sorted(inode.dirty):
        if random.random() < 0.5:
            start = sector * SECTOR
            content = inode.data[start : start + SECTOR]
            if len(result) < start + len(content):
                result.extend(b"\0" * (start + len(content) - len(result)))
            result[start : start + len(content)] = content
    length = random.choice((*lengths, random.randint(min(lengths), max(lengths))))
    return bytes(result[:length].ljust(length, b"\0"))
