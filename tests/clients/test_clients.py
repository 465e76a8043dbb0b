"""Each client's own package, unmodified and pinned, does its calls against a served deployment."""

from typing import NamedTuple

import pytest

from tests.clients.conftest import World
from tests.clients.environments import SCRIPTS, node_env, python_env

pytestmark = pytest.mark.timeout(900)


class Client(NamedTuple):
    """A script of `scripts/`, the packages it needs, and the calls that it must tell of."""

    name: str
    script: str
    pins: tuple[str, ...]
    calls: set[str]


CLOUDFLARE = {
    "identity", "global key", "create and upload", "list finetunes", "run", "run with LoRA", "stream",
    "models, schema, tasks, authors", "errors", "logs",
}  # fmt: skip
OPENAI = {
    "chat", "chat with LoRA", "stream with usage", "JSON schema", "tools", "completions", "responses", "embeddings",
    "models", "error text",
}  # fmt: skip
CLIENTS = (
    Client("cloudflare for Python", "cloudflare_sdk.py", ("cloudflare==5.9.0",), CLOUDFLARE),
    Client("cloudflare for Python, old", "cloudflare_sdk.py", ("cloudflare==4.3.1",), CLOUDFLARE),
    Client("openai for Python", "openai_sdk.py", ("openai==3.52.0",), OPENAI),
    Client(
        "anthropic for Python", "anthropic_sdk.py", ("anthropic==2.14.0",),
        {"messages", "messages with LoRA", "stream", "stop sequence", "JSON schema", "tools", "error text"},
    ),
    Client(
        "langchain-cloudflare", "langchain_cf.py", ("langchain-cloudflare==0.4.3",),
        {f"{call}, {form}" for call in ("chat", "LoRA", "stream") for form in ("workers_ai", "openai_compatible")}
        | {"embeddings", "errors"},
    ),
    Client(
        "LiteLLM cloudflare/", "litellm_cf.py", ("litellm==1.109.1",),
        {"chat, both bases", "chat with LoRA", "stream", "errors by class"},
    ),
    Client("cloudflare for TypeScript", "cloudflare_sdk.mjs", ("cloudflare@7.3.0",), CLOUDFLARE),
    Client("openai for JavaScript", "openai_sdk.mjs", ("openai@7.55.0",), OPENAI),
    Client(
        "ai with workers-ai-provider", "vercel_ai.mjs", ("ai@7.0.173", "workers-ai-provider@4.0.0"),
        {"text", "LoRA in the query", "stream", "embeddings", "errors"},
    ),
)  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client(world: World, client: Client) -> None:
    name = client.name.replace(" ", "-").replace("/", "").replace(",", "")
    if client.script.endswith(".py"):
        interpreter = python_env(name, client.pins)
        world.run(client.name, [str(interpreter), str(SCRIPTS / client.script)], SCRIPTS, client.calls)
    else:
        folder = node_env(name, client.pins)
        world.run(client.name, ["node", client.script], folder, client.calls)
