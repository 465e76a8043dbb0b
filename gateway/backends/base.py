"""What answers a resolved request: a runtime on this machine, later a remote provider, or the fake used by tests.

Closing the iterator before its end (the caller went away) must free everything that the request holds.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

from gateway.messages import ChatRequest, Chunk, ResolvedRequest
from runtime.protocol import AdapterRef, AdapterStatus, CacheReport


class Backend(Protocol):
    """At most six verbs; every backend passes `tests/gateway/backends/conformance.py`."""

    def generate(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        """Streams the answer; the last chunk has finish_reason and usage.

        Raises ContextExceeded, OverCapacity, FinetuneNotFound, RuntimeUnavailable, RequestTimeout before or, once
        chunks flowed, between chunks.
        """
        ...

    async def count_tokens(self, asked: ChatRequest) -> int:
        """Of the prompt, as `generate` would send it. Raises BadInput, and ContextExceeded far beyond the window."""
        ...

    async def adapter_statuses(self, digests: Sequence[str]) -> Mapping[str, AdapterStatus]:
        """Where adapters are now and how they got there; without those that this backend has not and never saw."""
        ...

    async def prefetch(self, adapter: AdapterRef) -> None:
        """Bring an adapter nearer ahead of its first request; best effort, never raises."""
        ...

    async def forget(self, digest: str) -> None:
        """Drop a deleted adapter from every tier; best effort, never raises."""
        ...

    def ready(self) -> str | None:
        """None when requests can be served, else a sentence that says what is missing."""
        ...


class AdapterCache(Protocol):
    """The tiers of one runtime, for the operator. `runtime.client.RuntimeClient` is one."""

    def pin(self, adapters: Sequence[AdapterRef]) -> None:
        """Keep exactly these in host memory."""
        ...

    def on_connect(self, told: Callable[[], None]) -> None:
        """Tell when there is a runtime, a new one after every restart; now if there is one."""
        ...

    async def prefetch(self, adapter: AdapterRef) -> None:
        """Bring one to host memory now; best effort."""
        ...

    async def forget(self, digest: str) -> None:
        """Drop one from every tier as soon as nobody uses it; best effort."""
        ...

    async def cache_report(self) -> CacheReport:
        """What is there. Raises RuntimeLost."""
        ...
