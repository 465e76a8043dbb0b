"""Frames of `protocol.py` as bytes, and back.

Apart from the records: a host that only computes (`storage/records.py`) has no msgspec, and speaks to nobody.
"""

from typing import Final

import msgspec

from runtime.protocol import MAX_FRAME_BYTES, ClientFrame, ProtocolError, ServerFrame

_encoder: Final = msgspec.msgpack.Encoder()
_client_decoder: Final[msgspec.msgpack.Decoder[ClientFrame]] = msgspec.msgpack.Decoder(ClientFrame)
_server_decoder: Final[msgspec.msgpack.Decoder[ServerFrame]] = msgspec.msgpack.Decoder(ServerFrame)


def encode(frame: ClientFrame | ServerFrame) -> bytes:
    """The frame with its length prefix. Raises ProtocolError when it exceeds MAX_FRAME_BYTES."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


def decode_client(body: bytes) -> ClientFrame:
    """A frame sent by a gateway. Raises ProtocolError."""
    try:
        return _client_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from error


def decode_server(body: bytes) -> ServerFrame:
    """A frame sent by a runtime. Raises ProtocolError."""
    try:
        return _server_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from error
