"""One uploaded file out of a multipart body: the text part `file_name` and the binary part `file`, in any order.

The body is judged while it streams: a wrong name ends it at once when the name comes first, a limit when it is passed.
The sender's own file name and content type mean nothing; only `file_name` does.
"""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from gateway.errors import BadInput, RequestTooLarge
from gateway.ingest.adapter import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from gateway.ingest.config_rules import MAX_CONFIG_BYTES
from gateway.ingest.spool import Scratch, SpooledFile
from gateway.names import printable
from gateway.wire.multipart import Part

MAX_FIELD_BYTES: Final = 4096


class Asset(NamedTuple):
    """A received file under one of the two names."""

    file_name: str
    file: SpooledFile


async def receive_asset(parts: AsyncIterator[Part], scratch: Scratch, max_bytes: int) -> Asset:
    """Reads the parts to the end of the body. Raises BadInput, RequestTooLarge, StorageFull."""
    limits = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_bytes}
    file_name: str | None = None
    file: SpooledFile | None = None
    async for part in parts:
        if part.name == "file_name" and file_name is None:
            file_name = _known(await part.text(MAX_FIELD_BYTES))
        elif part.name == "file" and file is None:
            limit = limits[file_name] if file_name else max(limits.values())
            file = await scratch.receive("upload", part.chunks(), limit, file_name or "the file")
        elif part.name in ("file_name", "file"):
            raise BadInput(f"the multipart body has more than one part {part.name!r}", param=part.name)
        else:
            await part.text(MAX_FIELD_BYTES)
    if file_name is None:
        raise BadInput("the multipart body has no part 'file_name'; it must be " + _choices(), param="file_name")
    if file is None:
        raise BadInput("the multipart body has no part 'file' with the file's bytes", param="file")
    if file.size_bytes > limits[file_name]:
        raise RequestTooLarge(f"{file_name} is above the limit of {limits[file_name]} bytes")
    if file.size_bytes == 0:
        raise BadInput(f"{file_name} is empty", param="file")
    return Asset(file_name, file)


def _known(name: str) -> str:
    if name not in ADAPTER_FILES:
        raise BadInput(f"file_name is {printable(name, 64)!r}; it must be {_choices()}", param="file_name")
    return name


def _choices() -> str:
    return " or ".join(ADAPTER_FILES)
