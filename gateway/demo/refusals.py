"""Step 4 of the demo: what must fail, and the errors that callers get."""

import json
from typing import Any

import httpx
from rich.console import Console

from gateway.demo import ADAPTERS_FOLDER, show
from gateway.demo.api import Account, Api
from gateway.demo.checks import Checks
from gateway.settings import DEMO_MODEL


async def try_refusals(
    console: Console,
    checks: Checks,
    http: httpx.AsyncClient,
    accounts: list[Api],
    finetunes: dict[str, str],
    owners: dict[str, Api],
) -> None:
    """Sends each bad request, prints the answer and expects its status and code."""
    console.rule("[bold]4  What must fail", align="left")
    first, second = accounts
    foreign = next(name for name, owner in owners.items() if owner is second)
    ask: dict[str, Any] = {"json": {"prompt": "Hello?", "lora": finetunes[foreign]}}
    stranger = Api(http, Account("stranger", first.account.account_id, "cfat_not-a-token"))
    config = json.loads((ADAPTERS_FOLDER / foreign / "adapter_config.json").read_bytes())
    weights = (ADAPTERS_FOLDER / foreign / "adapter_model.safetensors").read_bytes()

    attempts = [
        ("another account's adapter", await first.call("POST", f"/ai/run/{DEMO_MODEL}", **ask), 404, 3037),
        ("a wrong token", await stranger.call("GET", "/ai/finetunes"), 401, 10000),
    ]
    high = await first.create_finetune("rank-too-high", "")
    reply = await first.upload(high, "adapter_config.json", json.dumps({**config, "r": 64}).encode())
    if reply.status_code == 200:  # the config alone may be fine until the weights are there
        reply = await first.upload(high, "adapter_model.safetensors", weights)
    attempts.append(("a rank above the limit", reply, 400, 5006))
    cut = await first.create_finetune("cut-short", "")
    await first.upload(cut, "adapter_config.json", json.dumps(config).encode())
    reply = await first.upload(cut, "adapter_model.safetensors", weights[: len(weights) // 2])
    attempts.append(("a truncated safetensors", reply, 400, 5006))
    for finetune_id in (high, cut):
        await first.result("DELETE", f"/ai/finetunes/{finetune_id}")

    for what, reply, status, code in attempts:
        body = reply.json()
        checks.expect(
            (reply.status_code, body["success"], body["errors"][0]["code"]) == (status, False, code),
            f"{what} is refused with {status}/{code} (got {reply.status_code} {reply.text})",
        )
        show.refusal(console, what, reply.status_code, body["errors"])
