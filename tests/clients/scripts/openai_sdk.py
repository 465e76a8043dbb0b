"""The OpenAI SDK: chat, streams, JSON schema, tools, completions, responses, models, errors."""

import json

import openai
from tell import BASE, EMBED_MODEL, MODEL, PIRATE, QUESTION, TOKEN, TOOL_MODEL, V1, call, raises

client = openai.OpenAI(base_url=V1, api_key=TOKEN, max_retries=0)
HELLO = [{"role": "user", "content": QUESTION}]
ASK = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 40}
LORA = {"lora": "pirate"}
SCHEMA = {
    "type": "object", "properties": {"town": {"type": "string", "maxLength": 8}, "sells": {"enum": ["wool", "salt"]}},
    "required": ["town", "sells"], "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide_at",
            "parameters": {
                "type": "object", "properties": {"side": {"enum": ["east", "west"]}}, "required": ["side"],
            },
        },
    }
]  # fmt: skip


def chat() -> None:
    said = client.chat.completions.create(**ASK)
    assert said.choices[0].message.content == BASE
    assert said.choices[0].finish_reason == "stop"
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def chat_lora() -> None:
    assert client.chat.completions.create(**ASK, extra_body=LORA).choices[0].message.content == PIRATE


def stream() -> None:
    chunks = list(
        client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}, extra_body=LORA)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == PIRATE
    assert [chunk.usage.total_tokens > 0 for chunk in chunks if chunk.usage] == [True]
    assert chunks[-1].choices == []


def json_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sale", "schema": SCHEMA, "strict": True}}
    said = client.chat.completions.create(**{**ASK, "max_tokens": 200}, response_format=form)
    assert set(json.loads(said.choices[0].message.content)) == {"town", "sells"}


def tools() -> None:
    said = client.chat.completions.create(
        model=TOOL_MODEL, messages=HELLO, tools=TOOLS, tool_choice="required", max_tokens=800, seed=1,
        parallel_tool_calls=False,
    )  # fmt: skip
    (made,) = said.choices[0].message.tool_calls
    assert said.choices[0].finish_reason == "tool_calls"
    assert json.loads(made.function.arguments)["side"] in ("east", "west")
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "tide_at"}}]}
    some = client.chat.completions.create(
        model=TOOL_MODEL, messages=HELLO, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        max_tokens=800, seed=1, parallel_tool_calls=False,
    )  # fmt: skip
    assert some.choices[0].message.tool_calls[0].function.name == "tide_at"
    talk = [*HELLO, said.choices[0].message, {"role": "tool", "tool_call_id": made.id, "content": "at noon"}]
    assert client.chat.completions.create(model=TOOL_MODEL, messages=talk, tools=TOOLS, max_tokens=4).choices


def completions() -> None:
    said = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=8, temperature=0, logprobs=2)
    assert said.object == "text_completion"
    assert len(said.choices[0].logprobs.tokens) == said.usage.completion_tokens


def responses() -> None:
    ask = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 40, "extra_body": LORA}
    assert client.responses.create(**ask).output_text == PIRATE
    with client.responses.stream(**ask) as events:
        final = events.get_final_response()
    assert final.output_text == PIRATE
    assert final.status == "completed"


def embeddings() -> None:
    said = client.embeddings.create(model=EMBED_MODEL, input=["which hall", "the tide"])  # as base64, unless asked
    plain = client.embeddings.create(model=EMBED_MODEL, input="which hall", encoding_format="float")
    assert [len(row.embedding) for row in said.data] == [32, 32]
    assert max(abs(a - b) for a, b in zip(said.data[0].embedding, plain.data[0].embedding, strict=True)) < 1e-5


def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def errors() -> None:
    gone = raises(openai.NotFoundError, lambda: client.chat.completions.create(**ASK, extra_body={"lora": "nobody"}))
    assert "Finetune nobody not found" in str(gone)
    assert gone.code == "3037"
    wrong = client.with_options(api_key="wrong")
    denied = raises(openai.AuthenticationError, lambda: wrong.chat.completions.create(**ASK))
    assert "Authentication error" in str(denied)
    bad = raises(openai.BadRequestError, lambda: client.chat.completions.create(**{**ASK, "temperature": 9}))
    assert bad.param == "temperature"


call("chat", chat)
call("chat with LoRA", chat_lora)
call("stream with usage", stream)
call("JSON schema", json_schema)
call("tools", tools)
call("completions", completions)
call("responses", responses)
call("embeddings", embeddings)
call("models", models)
call("error text", errors)
