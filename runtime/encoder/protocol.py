"""Frames between a gateway process and an encoder's process. No torch here: the gateway imports this file.

The framing and the hello are those of `runtime.protocol`. Token ids go in with the special tokens already there;
float32 vectors (little-endian, one after the other) or scores come out, in the order of the texts.
"""

from typing import Literal

import msgspec

from runtime.encoder.config import Pooling, Task
from runtime.protocol import MAX_FRAME_BYTES, ProtocolError


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    """First frame of the gateway; a wrong token gets a close."""

    token: str


class Greeted(msgspec.Struct, frozen=True, tag="greeted"):
    """What this encoder is."""

    model: str
    task: Task
    size: int
    max_tokens: int


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """Texts of one caller. `types`: for pairs, 0 and 1 by token; empty for single texts."""

    number: int
    token_ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] = ()
    pooling: Pooling = "mean"


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Sent every second."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Answer to `Ping`, unless the model has been at one batch for too long: so a hung model does not answer."""


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """Vectors, or one score a text."""

    number: int
    values: bytes


class EncodeFailed(msgspec.Struct, frozen=True, tag="failed"):
    """No answer to this one; `overloaded` may be tried again."""

    number: int
    kind: Literal["overloaded", "too_long", "internal"]
    message: str


ToEncoder = Greeting | Encode | Ping
FromEncoder = Greeted | Encoded | EncodeFailed | Pong
_encoder = msgspec.msgpack.Encoder()
_to: msgspec.msgpack.Decoder[ToEncoder] = msgspec.msgpack.Decoder(ToEncoder)
_from: msgspec.msgpack.Decoder[FromEncoder] = msgspec.msgpack.Decoder(FromEncoder)


def frame(message: ToEncoder | FromEncoder) -> bytes:
    """With its length in front. Raises ProtocolError when it is too large."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


def read_request(body: bytes) -> ToEncoder:
    """Raises ProtocolError."""
    try:
        return _to.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from error


def read_answer(body: bytes) -> FromEncoder:
    """Raises ProtocolError."""
    try:
        return _from.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from error
