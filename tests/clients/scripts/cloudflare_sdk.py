"""The `cloudflare` SDK: identity, catalogue, finetunes, inference, logs."""

import json
from pathlib import Path

import cloudflare
from cloudflare import BadRequestError, Cloudflare, NotFoundError
from tell import ACCOUNT, ADAPTERS, BASE, MODEL, PIRATE, QUESTION, TOKEN, V4, call, raises

NAME = f"by-python-{cloudflare.__version__}"
client = Cloudflare(api_token=TOKEN, base_url=V4)
ASK = {"account_id": ACCOUNT, "prompt": QUESTION, "temperature": 0, "max_tokens": 40}


def identity() -> None:
    assert client.user.tokens.verify().status == "active"
    assert [account.id for account in client.accounts.list()] == [ACCOUNT]
    assert client.accounts.get(account_id=ACCOUNT).id == ACCOUNT
    assert [row.account.id for row in client.memberships.list()] == [ACCOUNT]


def global_key() -> None:
    with Cloudflare(api_key=TOKEN, api_email="a@example.org", base_url=V4) as other:
        assert [account.id for account in other.accounts.list()] == [ACCOUNT]


def create_and_upload() -> None:
    made = client.ai.finetunes.create(account_id=ACCOUNT, model=MODEL, name=NAME, description="d")
    assert made.name == NAME
    folder = Path(ADAPTERS) / "tides-pirate"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        answer = client.ai.finetunes.assets.create(made.id, account_id=ACCOUNT, file=(folder / name), file_name=name)
        assert getattr(answer, "success", True) is True  # the old client looks for it inside `result`
    said = client.ai.run(MODEL, lora=NAME, **ASK)
    assert said["response"] == PIRATE, said


def list_finetunes() -> None:
    rows = client.ai.finetunes.list(account_id=ACCOUNT)
    assert {row["name"] if isinstance(row, dict) else row.name for row in rows} >= {"pirate", NAME}
    assert list(client.ai.finetunes.public.list(account_id=ACCOUNT)) == []


def run() -> None:
    said = client.ai.run(MODEL, **ASK)
    assert said["response"] == BASE, said
    assert said["usage"]["completion_tokens"] > 0


def run_lora() -> None:
    assert client.ai.run(MODEL, lora="pirate", **ASK)["response"] == PIRATE


def stream() -> None:
    with client.ai.with_streaming_response.run(MODEL, extra_body={"stream": True}, lora="pirate", **ASK) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["response"] for event in events[:-1]) == PIRATE


def models() -> None:
    names = [row["name"] if isinstance(row, dict) else row.name for row in client.ai.models.list(account_id=ACCOUNT)]
    assert MODEL in names
    assert len(names) == len(set(names))  # the paging ended, and gave nothing twice
    assert client.ai.models.schema.get(account_id=ACCOUNT, model=MODEL) is not None
    assert client.ai.tasks.list(account_id=ACCOUNT)
    assert client.ai.authors.list(account_id=ACCOUNT)


def errors() -> None:
    gone = raises(NotFoundError, lambda: client.ai.run(MODEL, lora="nobody", **ASK))
    assert gone.errors[0].code == 3037
    bad = raises(BadRequestError, lambda: client.ai.run(MODEL, account_id=ACCOUNT, prompt="x", temperature=9))
    assert bad.errors[0].code == 5006
    assert "'temperature'" in bad.errors[0].message
    unknown = raises(BadRequestError, lambda: client.ai.run("@cf/nobody/nothing", account_id=ACCOUNT, prompt="x"))
    assert unknown.errors[0].code == 5007


def logs() -> None:
    where = {"account_id": ACCOUNT}
    listed = client.ai_gateway.logs.list("default", **where, per_page=5)
    log = next(iter(listed))
    detail = client.ai_gateway.logs.get(log.id, account_id=ACCOUNT, gateway_id="default")
    assert detail.id == log.id
    one = [{"key": "success", "operator": "eq", "value": [True]}]
    assert next(iter(client.ai_gateway.logs.list("default", **where, filters=one))).success is True
    body = client.ai_gateway.logs.request(log.id, account_id=ACCOUNT, gateway_id="default")
    assert body is not None
    client.ai_gateway.logs.edit(log.id, account_id=ACCOUNT, gateway_id="default", feedback=1)
    changed = client.ai_gateway.logs.get(log.id, account_id=ACCOUNT, gateway_id="default")
    assert changed.to_dict()["feedback"] == 1


call("identity", identity)
call("global key", global_key)
call("create and upload", create_and_upload)
call("list finetunes", list_finetunes)
call("run", run)
call("run with LoRA", run_lora)
call("stream", stream)
call("models, schema, tasks, authors", models)
call("errors", errors)
call("logs", logs)
