"""From the fields of a body to the one `ChatRequest`: the last step of every dialect."""

import msgspec

from gateway.messages import ChatRequest, Dialect
from gateway.wire.body import Body, Settings
from gateway.wire.chat_body import flag, refuse_unsupported
from gateway.wire.priority_field import priority
from gateway.wire.response_format import json_schema
from gateway.wire.sampling_fields import sampling
from gateway.wire.tools import tools
from gateway.wire.turns import conversation

_SEED_MASK = 2**63 - 1


def chat_request(fields: Body, model: str, dialect: Dialect) -> ChatRequest:
    """Raises BadInput. Only the native dialect has narrow seeds, and usage in every stream."""
    refuse_unsupported(fields)
    native = dialect == "workers_ai"
    prompt, messages = conversation(fields)
    chosen = sampling(fields, dialect)
    if chosen.seed is not None and not native:
        chosen = msgspec.structs.replace(chosen, seed=chosen.seed & _SEED_MASK)
    raw = flag("raw", fields.raw)
    offered, choice = tools(fields, has_messages=messages is not None, raw=raw)
    busy = fields.options.reject_if_busy if fields.options else None
    usage = fields.stream_options.include_usage if fields.stream_options else None
    return ChatRequest(
        dialect=dialect,
        model=model,
        lora=fields.lora or None,
        prompt=prompt,
        messages=messages,
        raw=raw,
        stream=flag("stream", fields.stream),
        include_usage=flag("stream_options.include_usage", usage, default=native),
        reject_if_busy=flag("options.rejectIfBusy", busy),
        sampling=chosen,
        json_schema=json_schema(fields),
        priority=priority(fields),
        tools=offered,
        tool_choice=choice,
    )


def as_body(fields: Settings) -> Body:
    """The settings that another dialect shares with the native one; the rest is the dialect's to fill in."""
    return Body(**{name: getattr(fields, name) for name in Settings.__struct_fields__})
