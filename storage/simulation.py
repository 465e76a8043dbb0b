"""A trace of requests replayed through the tiers' own ledgers and policies: hit ratios at any size, no byte moved.

    requests > device (rank rows, lru) > what missed > memory > what missed > disk > what missed: the object store

A request is asked for and let go in one moment; loads that overlap in reality are one after the other here. Everything
runs on one core, a few tenths of a microsecond per hit.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from storage.ledger import GIANTS_SHARE, Ledger
from storage.policies import PolicyName, make_policy

SHARES: Final = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
MAX_REPLAYED: Final = 200_000  # for each point of a curve; what is set now is replayed whole


class Adapter(NamedTuple):
    """What a tier must know of one adapter."""

    size_bytes: int
    rank: int


class Trace(NamedTuple):
    """Requests in order, by the names of adapters."""

    requests: Sequence[str]
    adapters: dict[str, Adapter]


class Passed(NamedTuple):
    """One tier's part: how many were found, and those that were not, in order."""

    hits: int
    missed: Sequence[str]


class Point(NamedTuple):
    """A tier of this size under this policy. `miss_ratio`: of what reaches the tier; `misses`: of all requests."""

    policy: PolicyName
    budget: int
    miss_ratio: float
    misses: int


def zipf_trace(
    num_adapters: int, exponent: float, num_requests: int, size_bytes: int, rank: int = 16, seed: int = 0
) -> Trace:
    """Popularity of the n-th adapter is 1 / n ** exponent."""
    rng = random.Random(seed)  # noqa: S311 - a trace is no secret
    bounds = list(accumulate(1 / (n + 1) ** exponent for n in range(num_adapters)))
    names = [f"adapter-{n}" for n in range(num_adapters)]
    total = bounds[-1]
    requests = [names[bisect_left(bounds, rng.random() * total)] for _ in range(num_requests)]
    return Trace(requests, dict.fromkeys(names, Adapter(size_bytes, rank)))


def pass_through(
    requests: Sequence[str],
    sizes: dict[str, int],
    policy: PolicyName,
    budget: int,
    *,
    giants_share: float = GIANTS_SHARE,
    must: bool = True,
) -> Passed:
    """One tier. `must`: whether it takes everything that fits it (memory does; a disk may pass a giant by)."""
    ledger = Ledger(budget, make_policy(policy, budget), giants_share)
    add, touch, unpin = ledger.add, ledger.touch, ledger.unpin
    missed: list[str] = []
    for name in requests:
        if touch(name):
            continue
        missed.append(name)
        if add(name, sizes[name], must=must) is not None:
            unpin(name)
    return Passed(len(requests) - len(missed), missed)


def through_device(trace: Trace, rows: int, granule: int = 8) -> Passed:
    """The device's pool in rank rows, rounded as `runtime.slots` does; nothing is a giant there."""
    taken = {name: -(-max(1, each.rank) // granule) * granule for name, each in trace.adapters.items()}
    return pass_through(trace.requests, taken, "lru", rows, giants_share=1.0)


def curve(
    requests: Sequence[str],
    sizes: dict[str, int],
    policies: Sequence[PolicyName],
    budgets: Sequence[int],
    *,
    giants_share: float = GIANTS_SHARE,
    must: bool = True,
) -> list[Point]:
    """Every policy at every size, over the last MAX_REPLAYED requests."""
    points, requests = [], requests[-MAX_REPLAYED:]
    for policy in policies:
        for budget in budgets:
            passed = pass_through(requests, sizes, policy, budget, giants_share=giants_share, must=must)
            ratio = len(passed.missed) / len(requests) if requests else 0.0
            points.append(Point(policy, budget, ratio, len(passed.missed)))
    return points


def budgets_for(trace: Trace, configured: int) -> list[int]:
    """Parts of what all adapters take together, none below two of the largest, and the size that is set."""
    sizes = [each.size_bytes for each in trace.adapters.values()]
    total, least = sum(sizes), 2 * max(sizes)
    return sorted({max(least, int(total * share)) for share in SHARES} | {max(least, min(configured, total))})
