"""OpenAI's Responses dialect, the way out: a `response` object, or its story told in numbered events.

    created, in_progress
    output_item.added, content_part.added, output_text.delta*, output_text.done, content_part.done, output_item.done
    output_item.added, function_call_arguments.delta*, function_call_arguments.done, output_item.done
    completed | incomplete

Items come one after the other, never two open at once: text after a call begins a new message.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, Chunk, FinishReason, ToolCallDelta, Usage
from gateway.wire import sse
from gateway.wire.envelope import error_body
from gateway.wire.responses_body import ResponsesBody

_encode = msgspec.json.Encoder().encode
_NULL: Final = b"null"


class ResponsesReply:
    """`gateway.wire.reply.Reply` in this shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str, created: int) -> None:
        self._log_id = log_id
        self._created = created
        self._asked: ChatRequest | None = None
        self._body = ResponsesBody()
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._text: list[str] = []  # of the item that is open
        self._call: int | None = None  # the call that the open item is about; None: a message
        self._is_open = False

    def describe(self, request: ChatRequest, body: ResponsesBody) -> None:
        """Much of what was asked is told back."""
        self._asked, self._body = request, body

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """The `response`."""
        (choice,) = choices  # `n` is no field of this dialect
        self._items = [self._message(choice.text, "completed")] if choice.text or not choice.tool_calls else []
        for call in choice.tool_calls:
            self._items.append(self._function_call(call, call.arguments, "completed"))
        return _encode(self._response(choice.finish_reason, usage))

    def piece(self, chunk: Chunk) -> bytes:
        """Events of text and calls, with those that open and close what they belong to."""
        said = self._begin()
        if chunk.text:
            said += self._delta_of_text(chunk.text)
        for call in chunk.tool_calls:
            said += self._delta_of_call(call)
        return said

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """Closes what is open, then the whole response once more."""
        said = self._begin()
        if not self._items:  # an answer without a word is an empty message
            said += self._open_message()
        said += self._close()
        response = self._response(last.finish_reason, usage)
        return said + self._event(f"response.{response['status']}", response=response)

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope with OpenAI's `error` beside it."""
        return _encode(error_body(error, openai=True))

    def failure_event(self, error: LorikeetError) -> bytes:
        """`error`, with an object of that name inside: OpenAI's clients raise when they meet it."""
        inner = error_body(error, openai=True)["error"]
        return self._event("error", code=str(error.code), message=error.message, param=error.param, error=inner)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        response = self._response(None, None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _delta_of_text(self, text: str) -> bytes:
        said = b""
        if not self._is_open or self._call is not None:
            said = self._close() + self._open_message()
        self._text.append(text)
        return said + self._inside("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _delta_of_call(self, call: ToolCallDelta) -> bytes:
        said = b""
        if not self._is_open or self._call != call.index:
            said = self._close()
            self._items.append(self._function_call(call, "", "in_progress"))
            self._is_open, self._call = True, call.index
            said += self._inside_item("response.output_item.added")
        if call.arguments:
            self._text.append(call.arguments)
            said += self._inside("response.function_call_arguments.delta", delta=call.arguments)
        return said

    def _open_message(self) -> bytes:
        self._items.append({**self._message("", "in_progress"), "content": []})
        self._is_open, self._call = True, None
        return self._inside_item("response.output_item.added") + self._inside(
            "response.content_part.added", content_index=0, part=_part("")
        )

    def _close(self) -> bytes:
        if not self._is_open:
            return b""
        text, item = "".join(self._text), self._items[-1]
        item["status"] = "completed"
        if self._call is None:
            item["content"] = [_part(text)]
            said = self._inside("response.output_text.done", content_index=0, text=text, logprobs=[])
            said += self._inside("response.content_part.done", content_index=0, part=_part(text))
        else:
            item["arguments"] = text
            said = self._inside("response.function_call_arguments.done", arguments=text, name=item["name"])
        said += self._inside_item("response.output_item.done")
        self._is_open, self._text = False, []
        return said

    def _message(self, text: str, status: str) -> dict[str, Any]:
        name = f"msg_{self._log_id}_{len(self._items)}"
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": [_part(text)]}

    def _function_call(self, call: ToolCallDelta, arguments: str, status: str) -> dict[str, Any]:
        return {
            "id": f"fc_{self._log_id}_{len(self._items)}",
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": call.name,
            "arguments": arguments,
        }

    def _inside(self, event: str, /, **told: Any) -> bytes:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return self._event(event, **place, **told)

    def _inside_item(self, name: str) -> bytes:
        return self._event(name, output_index=len(self._items) - 1, item=self._items[-1])

    def _event(self, name: str, /, **told: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return sse.named_event(name, {"type": name, "sequence_number": number, **told})

    def _response(self, finish_reason: FinishReason | None, usage: Usage | None) -> dict[str, Any]:
        asked, body = self._asked, self._body
        sampling = asked.sampling if asked else None
        ended = usage is not None
        cut = finish_reason == "length"
        return {
            "id": f"resp_{self._log_id}",
            "object": "response",
            "created_at": self._created,
            "status": ("incomplete" if cut else "completed") if ended else "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": sampling.max_tokens if sampling and sampling.max_tokens_given else None,
            "metadata": body.metadata if bytes(body.metadata) != _NULL else {},
            "model": asked.model if asked else "",
            "output": list(self._items) if ended else [],
            "parallel_tool_calls": asked.tool_choice.parallel if asked else True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature if sampling else None,
            "text": {"format": body.text.format} if body.text and bytes(body.text.format) != _NULL else _PLAIN,
            "tool_choice": body.tool_choice if bytes(body.tool_choice) != _NULL else "auto",
            "tools": body.tools if bytes(body.tools) != _NULL else [],
            "top_p": sampling.top_p if sampling else None,
            "truncation": "disabled",
            "usage": _usage(usage),
        }


_PLAIN: Final[dict[str, Any]] = {"format": {"type": "text"}}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
