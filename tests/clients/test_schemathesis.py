"""schemathesis over /openapi.json, bounded and seeded: no 5xx, and every reply has a status, type and schema told."""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.app import ROWS
from gateway.demo import ADAPTERS_FOLDER
from gateway.openapi.document import document
from gateway.settings import DEMO_MODEL
from tests.clients.environments import python_env
from tests.gateway.stack import Stack, open_stack, serve

PINS = ("schemathesis==4.32.5",)
EXAMPLES = 12
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
FINETUNE = "/client/v4/accounts/{account_id}/ai/finetunes/{finetune}"
CONFIG = """
[parameters]
"path.account_id" = "{account}"
"path.model" = "{model}"
"path.gateway_id" = "default"
"path.finetune" = "pirate"
"path.version" = "1"
"path.file_name" = "adapter_config.json"
"path.alias" = "stable"
"path.log_id" = "{log_id}"

# What is deleted here is not what the others read.
[[operations]]
include-name = "DELETE {finetune}"
parameters = {{ "path.finetune" = "absent" }}
"""


async def seed(stack: Stack) -> str:
    """A finetune with an alias, and a log; the log's id."""
    await stack.post("/ai/finetunes", {"model": DEMO_MODEL, "name": "pirate"})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        answer = await stack.client.post(
            stack.url("/ai/finetunes/pirate/finetune-assets"), data={"file_name": name},
            files={"file": ("blob", (ADAPTERS_FOLDER / "tides-pirate" / name).read_bytes())},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
    await stack.client.put(stack.url("/ai/finetunes/pirate/aliases/stable"), json={"version": 1})
    return (await stack.post(f"/ai/run/{DEMO_MODEL}", {"prompt": "x"})).headers["cf-aig-log-id"]


@pytest.mark.timeout(900)
async def test_every_call_does_as_it_says(tmp_path: Path) -> None:
    interpreter = await asyncio.to_thread(python_env, "schemathesis", PINS)
    async with open_stack(tmp_path) as stack, serve(stack.app) as url:
        text = CONFIG.format(account=stack.account, model=DEMO_MODEL, log_id=await seed(stack), finetune=FINETUNE)
        (tmp_path / "schemathesis.toml").write_text(text)
        process = await asyncio.create_subprocess_exec(
            str(interpreter.parent / "schemathesis"), "--config-file", str(tmp_path / "schemathesis.toml"),
            "run", f"{url}/openapi.json", "--phases", "examples,fuzzing", "-n", str(EXAMPLES), "--seed", "1",
            "--checks", CHECKS, "-H", f"Authorization: Bearer {stack.secret}", "--no-color", "--continue-on-failure",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        said, _ = await process.communicate()
        print(said.decode()[-6000:], file=sys.stderr)
        assert process.returncode == 0
        calls = sum(len(call) for call in document(ROWS, "0")["paths"].values())
        # Every call but one: schemathesis leaves out the address that it was told to read the description from.
        assert f"Tested: {calls - 1}\n".encode() in said
        assert not [record for record in stack.records.seen if record.status_code >= 500]
