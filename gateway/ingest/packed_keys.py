"""Where the packed file of an adapter lies in the object store: a key from which its digest can be read again."""

import re
from typing import Final

_KEY: Final = re.compile(r"adapters/[^/]+/([0-9a-f]{64})\.lora")


def packed_key_of(account_id: str, digest: str) -> str:
    """Of an account's packed file; accounts share none."""
    return f"adapters/{account_id}/{digest}.lora"


def digest_of(key: str) -> str | None:
    """None for an object that is no packed file."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]
