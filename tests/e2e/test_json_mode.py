"""JSON mode through the public API of a real deployment: both routes, streams, accounts and adapters in one batch."""

import concurrent.futures
import json
import time
from typing import Any

import jsonschema
import openai
import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, Caller, Deployment

QUESTION = "What does Molbury sell?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["harbour", "market", "mill"]},
        "boats": {"type": "integer", "minimum": 0, "maximum": 40},
    },
    "required": ["town", "kind", "boats"],
    "additionalProperties": False,
}
BARE = {"type": "json_schema", "json_schema": SCHEMA}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "town", "strict": True, "schema": SCHEMA}}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def caller(deployment: Deployment) -> Caller:
    return deployment.account("json-mode")


def client_of(caller: Caller) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{caller.root}/ai/v1", api_key=caller.token)


def test_the_native_route_answers_with_a_value(caller: Caller) -> None:
    for more in ({}, {"temperature": 1.5, "seed": 4}, {"raw": True}):
        answer = caller.ask(QUESTION, response_format=BARE, **more)
        assert answer.status_code == 200, answer.text
        jsonschema.validate(answer.json()["result"]["response"], SCHEMA)
    with caller.http() as http:
        body = {"messages": [{"role": "user", "content": QUESTION}], "response_format": WRAPPED}
        value = http.post(f"/ai/run/{MODEL}", json=body).json()["result"]["response"]
    jsonschema.validate(value, SCHEMA)


def test_openais_own_client(caller: Caller) -> None:
    with client_of(caller) as client:
        turns = [{"role": "user", "content": QUESTION}]
        wishes = {"temperature": 1.5, "seed": 11, "max_tokens": 200}
        asked: dict[str, Any] = {"model": MODEL, "messages": turns, "response_format": WRAPPED, **wishes}
        whole = client.chat.completions.create(**asked, n=4)
        said = [choice.message.content or "" for choice in whole.choices]
        assert [choice.finish_reason for choice in whole.choices] == ["stop"] * 4
        for text in said:
            jsonschema.validate(json.loads(text), SCHEMA)
        assert len(set(said)) > 1
        chunks = list(client.chat.completions.create(**asked, stream=True))
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert streamed == said[0], "the same seed"
        assert len(chunks) > 3
        cut = client.chat.completions.create(**{**asked, "max_tokens": 4}).choices[0]
        assert cut.finish_reason == "length"
        assert whole.choices[0].message.content is not None
        assert whole.choices[0].message.content.startswith(cut.message.content or "?")


def test_any_object(caller: Caller) -> None:
    answer = caller.ask("Say something.", response_format={"type": "json_object"}, max_tokens=150)
    if answer.status_code == 200:
        assert isinstance(answer.json()["result"]["response"], dict)
    else:
        assert answer.json()["errors"][0]["code"] == 5024


def test_a_native_stream_is_text(caller: Caller) -> None:
    with caller.http() as http, http.stream(
        "POST", f"/ai/run/{MODEL}",
        json={"prompt": QUESTION, "temperature": 0, "stream": True, "response_format": BARE},
    ) as answer:  # fmt: skip
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    text = "".join(json.loads(event)["response"] for event in events)
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_mixed_crowd_keeps_its_answers(caller: Caller) -> None:
    """With and without schemas, with and without adapters: as each would be answered alone."""
    names = sorted(folder.name for folder in ADAPTERS_FOLDER.iterdir())[:2]
    for name in names:
        caller.upload(name, ADAPTERS_FOLDER / name)
    jobs: list[dict[str, Any]] = [
        {**lora, **form, "seed": 1, "temperature": 1.0}
        for lora in ({}, *({"lora": name} for name in names))
        for form in ({}, {"response_format": BARE})
    ]
    alone = [caller.ask(QUESTION, **job).json()["result"]["response"] for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        crowd = list(pool.map(lambda job: caller.ask(QUESTION, **job).json()["result"]["response"], jobs))
    assert crowd == alone
    for job, value in zip(jobs, alone, strict=True):
        if "response_format" in job:
            jsonschema.validate(value, SCHEMA)
        else:
            assert isinstance(value, str)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "not": {"required": ["a"]}}, 'keywords that cannot be enforced: "not"'),
        ({"type": "banana"}, "banana"),
        ({"$ref": "#"}, "nothing satisfies it"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
    ],
)
def test_what_cannot_be_met(caller: Caller, schema: dict[str, Any], reason: str) -> None:
    form = {"type": "json_schema", "json_schema": schema}
    answer = caller.ask(QUESTION, response_format=form)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["code"] == 5024
    assert error["message"].startswith("AiError: JSON Mode couldn't be met: ")
    assert reason in error["message"]
    with (
        client_of(caller) as client,
        pytest.raises(openai.BadRequestError, match="JSON Mode couldn't be met") as caught,
    ):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            response_format=form,  # type: ignore[call-overload]
        )
    assert caught.value.code == "5024"
    assert caller.ask(QUESTION, response_format=BARE).status_code == 200


def test_hostile_schemas_hold_up_nobody(caller: Caller, deployment: Deployment) -> None:
    """Four that take two seconds each: plain requests, and another account's schema, are answered meanwhile."""
    other = deployment.account("json-mode-other")

    def attack(number: int) -> Any:
        schema = {"type": "integer", "multipleOf": 99_999_989, "title": str(number)}
        return caller.ask(QUESTION, response_format={"type": "json_schema", "json_schema": schema}).json()["errors"][0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        attacks = [pool.submit(attack, number) for number in range(4)]
        began = time.monotonic()
        assert other.ask(QUESTION).status_code == 200
        plain_s = time.monotonic() - began
        schema = {**SCHEMA, "title": "not seen before"}
        answer = other.ask(QUESTION, response_format={"type": "json_schema", "json_schema": schema})
        meanwhile = [attack.done() for attack in attacks]
    assert answer.status_code == 200
    assert plain_s < 5.0
    assert not all(meanwhile)
    for error in (attack.result() for attack in attacks):
        assert error["code"] == 5024
        assert "too much time or memory" in error["message"]
