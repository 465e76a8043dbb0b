"""Anthropic's SDK: messages, streams, tools, errors."""

import json

import anthropic
from tell import ACCOUNT, BASE, MODEL, PIRATE, QUESTION, TOKEN, TOOL_MODEL, V4, call, raises

client = anthropic.Anthropic(base_url=f"{V4}/accounts/{ACCOUNT}/ai", api_key=TOKEN, max_retries=0)
HELLO = [{"role": "user", "content": QUESTION}]
ASK = {"model": MODEL, "messages": HELLO, "max_tokens": 40}
GREEDY = {"temperature": 0}  # the client has no argument for it any more
LORA = {"lora": "pirate", **GREEDY}
TOOLS = [
    {
        "name": "tide_at",
        "input_schema": {"type": "object", "properties": {"side": {"enum": ["east", "west"]}}, "required": ["side"]},
    }
]


def messages() -> None:
    said = client.messages.create(**ASK, extra_body=GREEDY)
    assert said.content[0].text == BASE
    assert said.stop_reason == "end_turn"
    assert said.usage.input_tokens > 0
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert counted.input_tokens == said.usage.input_tokens


def with_lora() -> None:
    assert client.messages.create(**ASK, extra_body=LORA).content[0].text == PIRATE


def stream() -> None:
    with client.messages.stream(**ASK, extra_body=LORA) as events:
        assert "".join(events.text_stream) == PIRATE
        final = events.get_final_message()
    assert final.usage.input_tokens > 0
    assert final.usage.output_tokens > 0


def stop_sequence() -> None:
    ask = {**ASK, "stop_sequences": [" wool"], "extra_body": GREEDY}
    said = client.messages.create(**ask)
    assert (said.stop_reason, said.stop_sequence, said.content[0].text) == ("stop_sequence", " wool", "Molbury sells")
    with client.messages.stream(**ask) as events:
        assert events.get_final_message().stop_sequence == " wool"


def structured() -> None:
    schema = {
        "type": "object", "properties": {"town": {"enum": ["Molbury"]}, "sells": {"enum": ["wool", "salt"]}},
        "required": ["town", "sells"], "additionalProperties": False,
    }  # fmt: skip
    ask = {**ASK, "max_tokens": 200, "extra_body": GREEDY}
    form = {"type": "json_schema", "schema": schema}
    said = client.messages.create(**ask, output_config={"format": form})
    assert json.loads(said.content[0].text) == {"town": "Molbury", "sells": "wool"}


def tools() -> None:
    ask = {
        "model": TOOL_MODEL, "messages": HELLO, "tools": TOOLS, "max_tokens": 800,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }  # fmt: skip
    said = client.messages.create(**ask)
    (block,) = [block for block in said.content if block.type == "tool_use"]
    assert said.stop_reason == "tool_use"
    assert block.input["side"] in ("east", "west")
    with client.messages.stream(**ask) as events:
        final = events.get_final_message()
    assert final.content[-1].input["side"] in ("east", "west")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "at noon"}
    talk = [*HELLO, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(model=TOOL_MODEL, messages=talk, tools=TOOLS, max_tokens=4).content is not None


def errors() -> None:
    gone = raises(anthropic.NotFoundError, lambda: client.messages.create(**ASK, extra_body={"lora": "nobody"}))
    assert "Finetune nobody not found" in str(gone)
    assert gone.type == "not_found_error"
    wrong = client.with_options(api_key="wrong")
    assert "Authentication error" in str(raises(anthropic.AuthenticationError, lambda: wrong.messages.create(**ASK)))


call("messages", messages)
call("messages with LoRA", with_lora)
call("stream", stream)
call("stop sequence", stop_sequence)
call("JSON schema", structured)
call("tools", tools)
call("error text", errors)
