"""The records of `residency.py`: one adapter on its way to the device, and whom that file asks and tells.

    ABSENT > FETCHING > HOST > COPYING > RESIDENT > ABSENT          (ABSENT: no record)
                                            v ^
                                          EVICTING > ABSENT         (no new sequences; gone with its last reference)

FETCHING: the loader brings the bytes to host memory and leases them to us. HOST: they wait for rows of the pool.
COPYING: layers are written, a slice per step, so that no load holds up the running sequences. RESIDENT: usable.
"""

import enum
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.protocol import AdapterRef, Tier, TierVisit
from runtime.slots import Slot
from storage.packed import Packed

# Adapters that are on their way to the device at once, each held in host memory.
MAX_LEASES: Final = 8


@dataclass(frozen=True, slots=True)
class Way:
    """How an adapter came up: the legs so far, and the tier where it lay before."""

    visits: tuple[TierVisit, ...] = ()
    source: Tier = "object"


class Loads(Protocol):
    """The way to the loader. Every call returns at once; answers come to the engine later."""

    def start(self, adapter: AdapterRef) -> None:
        """Bring it to host memory and lease it: `loaded`, `failed` or, after `stop`, `stopped` follows."""
        ...

    def stop(self, digest: str) -> None:
        """Nobody waits for it any more. If it was started `stopped` follows, or what was on its way already."""
        ...

    def warm(self, adapter: AdapterRef) -> None:
        """Bring it to host memory, best effort: `warmed` may follow."""
        ...

    def release(self, digest: str) -> None:
        """The lease given by `loaded` ends."""
        ...

    def forget(self, digest: str) -> None:
        """Drop it from every tier."""
        ...


class AdapterState(enum.Enum):
    """See the file's header."""

    FETCHING = enum.auto()
    HOST = enum.auto()
    COPYING = enum.auto()
    RESIDENT = enum.auto()
    EVICTING = enum.auto()


@dataclass(eq=False, slots=True)
class Adapter:
    """One adapter that is not ABSENT. `packed` is set in HOST and COPYING, `slot` from COPYING on."""

    ref: AdapterRef
    state: AdapterState = AdapterState.FETCHING
    packed: Packed | None = None
    slot: Slot | None = None
    way: Way = Way()
    layers_written: int = 0
    host_since: float = 0.0
    copy_began_at: float = 0.0
    forgotten: bool = False


LEASED: Final = frozenset({AdapterState.FETCHING, AdapterState.HOST, AdapterState.COPYING})
USABLE: Final = frozenset({AdapterState.RESIDENT, AdapterState.EVICTING})


class Demand(Protocol):
    """Who waits for which adapter, and how long the running ones may still take. The scheduler answers."""

    def adapters_in_turn(self) -> list[AdapterRef]:
        """Adapters that somebody waits for, in the order in which they should come."""
        ...

    def has_adapter(self, digest: str) -> bool:
        """True when somebody waits for it."""
        ...

    def num_remaining(self, digest: str) -> int:
        """The tokens that its running sequences may still generate, at most."""
        ...
