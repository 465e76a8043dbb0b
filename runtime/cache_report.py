"""What a runtime tells of its adapter tiers: device, memory, disk and object store in one record."""

from collections.abc import Collection, Mapping

import msgspec

from runtime.protocol import MAX_REPORTED, CachedAdapter, CacheReport, Stats, TierReport
from storage.tier_records import LoadTimes, Resident, TierName, TierStats


def cache_report(
    number: int,
    device: TierReport,
    copies: LoadTimes,
    on_device: Collection[str],
    below: Mapping[TierName, TierStats],
    residents: list[Resident],
    stats: Stats,
) -> CacheReport:
    """`copies`: how long it took from memory to the device. `below`: the tiers under it. `stats`: the runtime's own."""
    tiers = [device]
    for name in ("memory", "disk", "object"):
        fields = msgspec.structs.asdict(below[name])
        tiers.append(TierReport(tier=name, **(fields | {"loads": copies} if name == "memory" else fields)))
    adapters = {
        each.digest: CachedAdapter(
            digest=each.digest,
            size_bytes=each.size_bytes,
            device=each.digest in on_device,
            memory=each.in_memory,
            disk=each.on_disk,
            pinned=each.kept,
            uses=each.uses,
        )
        for each in residents
    }
    for digest in on_device:
        adapters.setdefault(digest, CachedAdapter(digest=digest, device=True))
    ordered = sorted(adapters.values(), key=lambda each: (not each.device, not each.memory, -each.uses, each.digest))
    return CacheReport(number, tuple(tiers), tuple(ordered[:MAX_REPORTED]), stats)
