"""Tools through `lorikeet serve`, OpenAI's own client and the native route: random weights that must call, and do.

What a model would rather say is left to scripted answers (`tests/gateway/test_tools.py`): here the calls are real ones,
made by a real runtime under the grammar of each family's format.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.deployment import Caller, deploy
from tests.e2e.random_bases import random_base

pytestmark = pytest.mark.timeout(240)

FAMILIES = ("llama3", "mistral", "hermes")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "tide_at",
            "description": "High water at a pier",
            "parameters": {
                "type": "object",
                "properties": {"side": {"enum": ["east", "west"]}, "deep": {"type": "boolean"}},
                "required": ["side", "deep"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
HELLO: Any = [{"role": "user", "content": "When is high water?"}]
NAMED: Any = {"type": "function", "function": {"name": "tide_at"}}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("tools")
    lines = ["demo_model = false"]
    for family in FAMILIES:
        random_base(folder / family, family)
        lines += [f'[models."@cf/ours/{family}"]', f'path = "{folder / family}"']
    random_base(folder / "silent", "hermes")
    lines += ['[models."@cf/ours/silent"]', f'path = "{folder / "silent"}"', 'tool_format = "none"']
    (folder / "lorikeet.toml").write_text("\n".join(lines))
    with deploy(folder / "data", LORIKEET_CONFIG=str(folder / "lorikeet.toml")) as deployment:
        yield deployment.account("tools")


def _client(caller: Caller) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{caller.root}/ai/v1", api_key=caller.token, max_retries=0)


def _is_valid(name: str, arguments: dict[str, Any]) -> bool:
    if name == "now":
        return arguments == {}
    return name == "tide_at" and arguments["side"] in ("east", "west") and isinstance(arguments["deep"], bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_must_call_calls(caller: Caller, family: str) -> None:
    with _client(caller) as client:
        for seed in (1, 2):
            asked: Any = {"model": f"@cf/ours/{family}", "messages": HELLO, "tools": TOOLS, "tool_choice": "required",
                          "max_tokens": 1500, "seed": seed, "temperature": 2.0,
                          "parallel_tool_calls": seed == 1}  # fmt: skip
            whole = client.chat.completions.create(**asked)
            (choice,) = whole.choices
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            assert choice.message.tool_calls
            said = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
            assert all(_is_valid(name, json.loads(arguments)) for name, arguments in said)
            with client.chat.completions.stream(**asked) as stream:
                final = stream.get_final_completion().choices[0]
            assert final.finish_reason == "tool_calls"
            assert [(c.function.name, c.function.arguments) for c in final.message.tool_calls or ()] == said


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_is_named_and_its_result(caller: Caller, family: str) -> None:
    model = f"@cf/ours/{family}"
    with _client(caller) as client:
        said = client.chat.completions.create(
            model=model, messages=HELLO, tools=TOOLS, tool_choice=NAMED, max_tokens=1500, parallel_tool_calls=False
        )
        message = said.choices[0].message
        assert message.tool_calls
        assert [call.to_dict()["function"]["name"] for call in message.tool_calls] == ["tide_at"]  # type: ignore[index]
        result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12:05"}
        talk: Any = [*HELLO, message, result]
        again = client.chat.completions.create(model=model, messages=talk, tools=TOOLS, max_tokens=5)
        assert again.usage is not None
        assert said.usage is not None
        assert again.usage.prompt_tokens > said.usage.prompt_tokens
    with caller.http() as http:
        body = {"messages": HELLO, "tools": [t["function"] for t in TOOLS], "tool_choice": NAMED, "max_tokens": 1500}
        native = http.post(f"/ai/run/{model}", json=body).json()["result"]
        assert native["response"] == ""
        (call,) = native["tool_calls"]
        assert _is_valid(call["name"], call["arguments"])


def test_a_schema_for_the_answer_beside_tools(caller: Caller) -> None:
    """Either JSON of that form, or calls: never anything else."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    kinds = set()
    with _client(caller) as client:
        for seed in range(3):
            (choice,) = client.chat.completions.create(
                model="@cf/ours/hermes", messages=HELLO, tools=TOOLS, response_format=form, max_tokens=1500, seed=seed,
                temperature=2.0,
            ).choices  # fmt: skip
            if choice.message.tool_calls:
                kinds.add("calls")
                assert choice.message.content is None
            else:
                kinds.add("json")
                assert json.loads(choice.message.content or "").keys() == {"ok"}
    assert kinds


def test_refusals_are_sentences(caller: Caller) -> None:
    with _client(caller) as client:
        with pytest.raises(openai.BadRequestError, match="tool_format"):
            client.chat.completions.create(model="@cf/ours/silent", messages=HELLO, tools=TOOLS)
        said = client.chat.completions.create(
            model="@cf/ours/silent", messages=HELLO, tools=TOOLS, tool_choice="none", max_tokens=3
        )
        assert said.choices[0].message.tool_calls is None
        twice: Any = [
            {"function": {"name": "now", "arguments": "{}"}, "id": str(n), "type": "function"} for n in (1, 2)
        ]
        with pytest.raises(openai.BadRequestError, match="one call a turn"):
            client.chat.completions.create(
                model="@cf/ours/llama3",
                messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": twice}],
                tools=TOOLS,
            )
