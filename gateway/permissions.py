"""What a token may be allowed to do, in the contract's words; writing implies reading."""

from typing import Literal

Permission = Literal["workers_ai.read", "workers_ai.write", "ai_gateway.read", "ai_gateway.edit", "ai_gateway.run"]
PERMISSIONS: tuple[Permission, ...] = (
    "workers_ai.read", "workers_ai.write", "ai_gateway.read", "ai_gateway.edit", "ai_gateway.run",
)  # fmt: skip
IMPLIES: dict[Permission, Permission] = {"workers_ai.write": "workers_ai.read", "ai_gateway.edit": "ai_gateway.read"}


def allows(granted: frozenset[str], needed: Permission) -> bool:
    """Whether the token's permissions cover the route's, write implying read."""
    return needed in granted or any(IMPLIES.get(p) == needed for p in PERMISSIONS if p in granted)
