"""How urgent a request is among its account's own: `priority` as vLLM's users send it, else OpenAI's `service_tier`."""

from typing import Final

from gateway.wire.body import Body
from gateway.wire.chat_body import whole

# What the other tiers mean (auto, default, scale) is the account's standing, which is the operator's to decide.
_TIERS: Final = {b'"priority"': -10, b'"flex"': 10}


def priority(body: Body) -> int:
    """Lower is served earlier; 0 unless said otherwise. Raises BadInput."""
    given = whole("priority", body.priority)
    return _TIERS.get(bytes(body.service_tier).strip(), 0) if given is None else given
