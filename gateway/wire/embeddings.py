"""Embeddings and reranking: the native bodies and OpenAI's, and how the answers are written.

{text, pooling?}              ->  {shape: [n, d], data: [[...]], pooling}
{query, contexts, top_k?}     ->  {response: [{id, score}]}, best first
OpenAI: {model, input}        ->  {object: "list", data: [{embedding}]}, floats or base64 of little-endian float32
"""

import base64
import struct
from typing import Annotated, Any, Final, Literal

import msgspec

from gateway.errors import LoraNotSupported
from gateway.wire import chat_body
from gateway.wire.body import Scalar, ranged, said
from runtime.encoder.config import Pooling

MAX_TEXTS: Final = 100
MAX_INPUTS: Final = 2048
MAX_CONTEXTS: Final = 1000
_POOLINGS: Final[dict[str, Pooling]] = {"mean": "mean", "cls": "cls"}


class EmbedBody(msgspec.Struct):
    """Native embeddings."""

    text: Annotated[str | list[str] | None, said(f"One text, or up to {MAX_TEXTS}.")] = None
    pooling: Annotated[str | None, said("How tokens become one vector.", type="string", enum=list(_POOLINGS))] = None
    lora: Annotated[str | None, said("Refused: encoders take no adapters.", maxLength=0)] = None


class Context(msgspec.Struct):
    """One text to rank."""

    text: Annotated[str, said("The text.", type="string", minLength=1)]


class RankBody(msgspec.Struct):
    """Native reranking."""

    query: Annotated[str | None, said("What is asked.", type="string", minLength=1)] = None
    contexts: Annotated[list[Context] | None, said("What might answer it.", minItems=1, maxItems=MAX_CONTEXTS)] = None
    top_k: Annotated[Scalar, ranged("integer", 1, MAX_CONTEXTS, "Only the best so many.")] = None
    lora: Annotated[str | None, said("Refused: encoders take no adapters.", maxLength=0)] = None


class EmbeddingsBody(msgspec.Struct):
    """OpenAI's embeddings."""

    model: Annotated[str | None, said("An encoder of the catalogue.", type="string")] = None
    input: Annotated[str | list[str] | None, said(f"One text, or up to {MAX_INPUTS}.")] = None
    encoding_format: Annotated[str | None, said("How a vector is written.", enum=["float", "base64"])] = None
    dimensions: Annotated[Scalar, said("Only the model's own number.", type="integer", minimum=1)] = None
    lora: Annotated[str | None, said("Refused: encoders take no adapters.", maxLength=0)] = None


_embed: Final = msgspec.json.Decoder(EmbedBody)
_rank: Final = msgspec.json.Decoder(RankBody)
_openai: Final = msgspec.json.Decoder(EmbeddingsBody)


def parse_embed(body: bytes, default: Pooling, lora: str | None) -> tuple[list[str], Pooling]:
    """(texts, pooling). `lora`: that of the query. Raises BadInput, EmptyBody, LoraNotSupported."""
    asked = chat_body.decode_as(_embed, body)
    _no_lora(asked.lora or lora)
    pooling = _POOLINGS.get(asked.pooling or default)
    if pooling is None:
        chat_body.bad('\'pooling\' must be "mean" or "cls"', "pooling")
    return _texts("text", asked.text, MAX_TEXTS), pooling


def parse_rank(body: bytes, lora: str | None) -> tuple[str, list[str], int]:
    """(query, contexts, how many to tell). Raises as `parse_embed`."""
    asked = chat_body.decode_as(_rank, body)
    _no_lora(asked.lora or lora)
    if not asked.query:
        chat_body.bad("'query' is missing or empty; send a text", "query")
    if not asked.contexts or len(asked.contexts) > MAX_CONTEXTS:
        chat_body.bad(f"'contexts' must be a list of 1 to {MAX_CONTEXTS} objects with a text", "contexts")
    contexts = [context.text for context in asked.contexts]
    if not all(contexts):
        chat_body.bad("'contexts' has an empty text; leave it out", "contexts")
    return asked.query, contexts, chat_body.whole("top_k", asked.top_k, (1, MAX_CONTEXTS)) or len(contexts)


def parse_openai(body: bytes) -> EmbeddingsBody:
    """With the texts as a list. Raises BadInput, EmptyBody."""
    asked = chat_body.decode_as(_openai, body)
    if not asked.model:
        chat_body.bad("'model' is missing; name an encoder of the catalogue", "model")
    if asked.encoding_format not in (None, "float", "base64"):
        chat_body.bad('\'encoding_format\' must be "float" or "base64"', "encoding_format")
    asked.input = _texts("input", asked.input, MAX_INPUTS)
    return asked


def check_openai(asked: EmbeddingsBody, size: int, lora: str | None) -> None:
    """What depends on the model. Raises BadInput, LoraNotSupported."""
    _no_lora(asked.lora or lora)
    if asked.dimensions is not None and chat_body.whole("dimensions", asked.dimensions, (1, 2**31 - 1)) != size:
        chat_body.bad(f"'dimensions' must be {size} for this model, or left out", "dimensions")


def embed_result(values: bytes, size: int, pooling: Pooling) -> dict[str, Any]:
    """The native result."""
    vectors = _vectors(values, size)
    return {"shape": [len(vectors), size], "data": vectors, "pooling": pooling}


def rank_result(values: bytes, top_k: int) -> dict[str, Any]:
    """The native result: best first; of equal ones the earlier."""
    scores = _vectors(values, 1)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index][0], index))
    return {"response": [{"id": index, "score": scores[index][0]} for index in order[:top_k]]}


def openai_result(
    values: bytes, size: int, model: str, tokens: int, form: Literal["float", "base64"]
) -> dict[str, Any]:
    """OpenAI's list."""
    step = 4 * size
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    told: list[Any] = _vectors(values, size) if form == "float" else [base64.b64encode(part).decode() for part in parts]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(told)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vectors(values: bytes, size: int) -> list[tuple[float, ...]]:
    return [*struct.iter_unpack(f"<{size}f", values)]


def _texts(name: str, given: str | list[str] | None, most: int) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not texts or len(texts) > most or not all(texts):
        chat_body.bad(f"'{name}' must be a text, or a list of 1 to {most} texts, none of them empty", name)
    return texts


def _no_lora(lora: str | None) -> None:
    if lora:
        raise LoraNotSupported("encoders do not support LoRA; leave 'lora' out", param="lora")
