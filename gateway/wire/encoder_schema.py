"""JSON Schemas of encoders, as `/ai/models/schema` shows them: the types that parse their bodies."""

from typing import Any, Final

import msgspec

from gateway.openapi.schema import Schemas
from gateway.wire.embeddings import EmbedBody, RankBody


class EmbedResult(msgspec.Struct):
    """`data` holds one vector a text."""

    shape: list[int]
    data: list[list[float]]
    pooling: str


class Ranked(msgspec.Struct):
    """`id` is the place of the context in the request."""

    id: int
    score: float


class RankResult(msgspec.Struct):
    """Best first."""

    response: list[Ranked]


def _schemas(body: type[msgspec.Struct], result: type[msgspec.Struct], required: list[str]) -> dict[str, Any]:
    schemas = Schemas(inline=True)
    shown = {**schemas.request(body, without=frozenset({"lora"})), "required": required}
    return {"input": shown, "output": schemas.reply(result)}


EMBED_SCHEMAS: Final = _schemas(EmbedBody, EmbedResult, ["text"])
RANK_SCHEMAS: Final = _schemas(RankBody, RankResult, ["query", "contexts"])
