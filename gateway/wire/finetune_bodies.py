"""The bodies of the finetune calls as types, for the parser and for the published description.

Unknown fields of `create` are skipped, as the original does; our own calls refuse them: a misspelt split would be one
that nobody gets.
"""

from typing import Annotated

import msgspec

from gateway.names import MAX_NAME_CHARS
from gateway.wire.body import Scalar, said

_VERSION = said("The number of a version.", type="integer", minimum=1, maximum=2**31 - 1)


class CreateFinetune(msgspec.Struct):
    """A new finetune, still without its two files."""

    model: Annotated[str, said("The base model.", type="string", minLength=1)]
    name: Annotated[str, said("Unique in the account.", type="string", minLength=1, maxLength=MAX_NAME_CHARS)]
    description: str | None = None
    public: Annotated[Scalar, said("Of the operator's own account only.", type="boolean", default=False)] = None


class DescribeFinetune(msgspec.Struct, forbid_unknown_fields=True):
    """What may be changed without a new version."""

    description: str | None


class OpenVersion(msgspec.Struct):
    """A new, empty version."""

    activate: Annotated[bool, said("Whether the name means it as soon as it is ready.")] = True


class Canary(msgspec.Struct, forbid_unknown_fields=True):
    """A share of the requests for another version."""

    version: Annotated[int, _VERSION]
    percent: Annotated[float, said("Above 0 and below 100.", type="number", exclusiveMinimum=0, exclusiveMaximum=100)]


class SetAlias(msgspec.Struct, forbid_unknown_fields=True):
    """What a name means."""

    version: Annotated[int, _VERSION]
    canary: Canary | None = None
