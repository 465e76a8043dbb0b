"""The body of the call that changes a log, for the parser and for the published description."""

from typing import Annotated, Any, Final

import msgspec

from gateway.wire.body import said

MAX_METADATA: Final = 20


class PatchLog(msgspec.Struct):
    """What may be said about an exchange afterwards; null takes it back, what is left out stays."""

    feedback: Annotated[Any, said("-1, 1 or null.", enum=[-1, 1, None])] = msgspec.UNSET
    score: Annotated[Any, said("A number, or null.", type=["number", "null"])] = msgspec.UNSET
    metadata: Annotated[
        Any,
        said(
            "Plain entries, or null.", type=["object", "null"], maxProperties=MAX_METADATA,
            additionalProperties={"type": ["string", "number", "boolean"]},
        ),
    ] = msgspec.UNSET  # fmt: skip
