"""The disk tier of a whole deployment where disks are worst: shared by two runtimes, and really full."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.demo import ADAPTERS_FOLDER, BASE_FOLDER
from tests.e2e.deployment import Deployment, deploy
from tests.small_disk import mounted

MODELS = ("@cf/test/one-lora", "@cf/test/two-lora")
ADAPTERS = ("tides-json", "tides-pirate", "moons-table")
QUESTION = "What does Molbury sell?"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds one or two adapters."""
    with mounted(tmp_path / "small", "700k") as folder:
        yield folder


def disk_of(deployment: Deployment, model: str) -> dict[str, Any]:
    report = deployment.cli("cache", "stats")[model]
    return next(tier for tier in report["tiers"] if tier["tier"] == "disk")


def settings(path: Path, tiers: Path) -> str:
    lines = [f'[models."{model}"]\npath = "{BASE_FOLDER}"' for model in MODELS]
    lines += ["[runtime]\nthreads = 1\nkv_bytes = 67108864\nadapter_rows = 16", f'[tiers]\npath = "{tiers}"']
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def answers(deployment: Deployment, account: str) -> dict[tuple[str, str], str]:
    """Uploads every adapter to both models and asks each."""
    caller, said = deployment.account(account), {}
    with caller.http() as http:
        for model in MODELS:
            for number, adapter in enumerate(ADAPTERS):
                name = f"{adapter}-{MODELS.index(model)}"
                created = http.post("/ai/finetunes", json={"model": model, "name": name})
                assert created.status_code == 200, created.text
                for file in ("adapter_config.json", "adapter_model.safetensors"):
                    files = {"file": ("blob", (ADAPTERS_FOLDER / adapter / file).read_bytes())}
                    reply = http.post(f"/ai/finetunes/{name}/finetune-assets", data={"file_name": file}, files=files)
                    assert reply.status_code == 200, (number, reply.text)
                body = {"prompt": QUESTION, "temperature": 0, "lora": name}
                answer = http.post(f"/ai/run/{model}", json=body)
                assert answer.status_code == 200, answer.text
                said[model, adapter] = answer.json()["result"]["response"]
    return said


def test_two_runtimes_share_a_disk_and_a_full_one_stops_neither(tmp_path: Path, small_disk: Path) -> None:
    config = settings(tmp_path / "shared.toml", tmp_path / "roomy")
    with deploy(tmp_path / "one", LORIKEET_CONFIG=config, LORIKEET_DEMO_MODEL="false") as deployment:
        roomy = answers(deployment, "roomy")
        assert len(list((tmp_path / "roomy" / "packed").iterdir())) == len(ADAPTERS), "one copy for both"
        assert disk_of(deployment, MODELS[0])["entries"] == len(ADAPTERS)
        assert disk_of(deployment, MODELS[1])["hits"] == len(ADAPTERS), "what the first has brought"
    assert len(set(roomy.values())) == len(ADAPTERS)

    config = settings(tmp_path / "small.toml", small_disk / "tier")
    with deploy(tmp_path / "two", LORIKEET_CONFIG=config, LORIKEET_DEMO_MODEL="false") as deployment:
        assert answers(deployment, "small") == roomy
        disks = [disk_of(deployment, model) for model in MODELS]
        assert sum(disk["refused"] + disk["evictions"] for disk in disks) > 0, "and the figures say so"
        assert all(disk["used_bytes"] < 700_000 for disk in disks)
        assert list((small_disk / "tier" / ".incoming").iterdir()) == []
        deployment.wait_until_ready(5)
