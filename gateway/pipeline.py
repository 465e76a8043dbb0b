"""From what a caller asked to what a backend yields: resolve, then one async generator of chunks.

`resolve` turns the caller's words into a model and an adapter that exist and are the caller's own. `generate` opens
the span, hands the request to the model's backend and passes its chunks on. Closing the generator closes the backend's,
which frees everything that the request holds there. The deadline is not watched here but by whoever pulls the chunks
(`answer.py`), because it also covers a caller who does not read.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext

import msgspec

from gateway.backends.base import Backend
from gateway.catalog import Catalog
from gateway.errors import LoraNotSupported, RuntimeUnavailable
from gateway.finetunes import Finetunes
from gateway.messages import ChatRequest, Chunk, Identity, ResolvedRequest
from gateway.telemetry import Telemetry


class Pipeline:
    """Stateless between requests. `backends` maps a catalogue name to what answers for it."""

    def __init__(
        self, catalog: Catalog, finetunes: Finetunes, backends: Mapping[str, Backend], telemetry: Telemetry
    ) -> None:
        self._catalog = catalog
        self._finetunes = finetunes
        self._backends = backends
        self._telemetry = telemetry

    async def resolve(
        self, request: ChatRequest, identity: Identity, log_id: str, session: str | None = None
    ) -> ResolvedRequest:
        """`session`: the caller's word for what belongs together; it stays with one side of a split.

        Raises UnknownModel, LoraNotSupported, FinetuneNotFound, FinetuneIncomplete.
        """
        model = self._catalog.get(request.model)
        adapter = None
        if request.lora is not None:
            if not model.supports_lora:
                raise LoraNotSupported(
                    f"{model.name} does not support LoRA; leave 'lora' out or name a model that takes adapters",
                    param="lora",
                )
            adapter = await self._finetunes.resolve(identity, model, request.lora, log_id, session)
        return ResolvedRequest(request, identity, model.name, adapter, log_id)

    def generate(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        """The answer in pieces; the last has finish_reason and usage. Raises what `Backend.generate` raises, and
        FinetuneNotFound when the adapter was deleted since it was resolved.
        """
        backend = self._backends.get(request.model)
        if backend is None:
            raise RuntimeUnavailable(f"no runtime serves {request.model} at the moment", retry_after_s=5)
        if request.adapter is None and not self._telemetry.in_trace():
            return backend.generate(request)  # nothing to hold or to tell: each generator costs every chunk
        return self._accompanied(backend, request)

    async def _accompanied(self, backend: Backend, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        using = self._finetunes.uses.hold(request.adapter, request.log_id) if request.adapter else nullcontext()
        with using, self._telemetry.inference_span(request) as span:
            if (traceparent := span.traceparent) is not None:
                request = msgspec.structs.replace(request, traceparent=traceparent)
            async with aclosing(backend.generate(request)) as chunks:
                async for chunk in chunks:
                    span.saw(chunk)
                    yield chunk
