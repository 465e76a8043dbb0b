"""A backend that is an encoder's process: texts to ids, ids to vectors or scores, its failures to typed errors."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from gateway.encoders import EncoderModel
from gateway.errors import ContextExceeded, InternalError, OverCapacity, RequestTimeout, RuntimeUnavailable
from gateway.text.encoder_tokenizer import EncoderTokenizer, Ids
from runtime.encoder.client import EncoderClient
from runtime.encoder.config import Pooling
from runtime.encoder.protocol import EncodeFailed
from runtime.errors import RuntimeLost

logger = logging.getLogger(__name__)
_INLINE_CHARS: Final = 4096
T = TypeVar("T")


class EncoderBackend:
    """One encoder. `client` is owned and closed by whoever made it."""

    def __init__(
        self,
        model: EncoderModel,
        client: EncoderClient,
        tokenizer: EncoderTokenizer,
        *,
        wait_s: float,
        timeout_s: float,
    ) -> None:
        self.model = model
        self._client, self._tokenizer, self._wait_s, self._timeout_s = client, tokenizer, wait_s, timeout_s

    async def embed(self, texts: Sequence[str], pooling: Pooling) -> tuple[bytes, int]:
        """(float32 values, one vector after the other; tokens). Raises OverCapacity, RuntimeUnavailable,
        ContextExceeded, RequestTimeout, InternalError."""
        ids = await _away(texts, self._tokenizer.texts, texts)
        return await self._ask(ids, (), pooling), sum(map(len, ids))

    async def rank(self, query: str, contexts: Sequence[str]) -> tuple[bytes, int]:
        """(float32 scores; tokens). Raises as `embed`."""
        ids, types = await _away([query, *contexts], self._tokenizer.pairs, query, contexts)
        return await self._ask(ids, types, "cls"), sum(map(len, ids))

    def ready(self) -> str | None:
        """None when texts can be encoded, else what is missing."""
        return self._client.problem

    async def _ask(self, ids: Ids, types: Sequence[Sequence[int]], pooling: Pooling) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                said = await self._client.encode(ids, types, pooling=pooling, wait_s=self._wait_s)
        except TimeoutError as error:
            raise RequestTimeout(
                f"the answer was not complete within {self._timeout_s:g} s; send fewer texts"
            ) from error
        except RuntimeLost as error:
            logger.warning("encoder unavailable: %s", error)
            raise RuntimeUnavailable("the model's encoder is down or restarting; try again", retry_after_s=2) from error
        if not isinstance(said, EncodeFailed):
            return said
        if said.kind == "overloaded":
            raise OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=1)
        if said.kind == "too_long":
            raise ContextExceeded(said.message)
        logger.error("encoder %s: %s", self.model.name, said.message)
        raise InternalError("the model failed on this request; try again")


async def _away(texts: Sequence[str], work: Callable[..., T], *arguments: object) -> T:
    if sum(map(len, texts)) <= _INLINE_CHARS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
