"""What settings change: a base of the operator's own, and objects in a real S3 bucket."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from aiobotocore.session import get_session
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GemmaConfig, MistralConfig, PretrainedConfig

from gateway.demo import ADAPTERS_FOLDER, BASE_FOLDER
from tests.e2e.deployment import deploy
from tests.storage.objects import swift

pytestmark = pytest.mark.timeout(180)

SIZES: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
BASES: dict[str, PretrainedConfig] = {
    "@cf/mistral/mistral-7b-instruct-v0.2-lora": MistralConfig(**SIZES, sliding_window=None),
    "@cf/google/gemma-2b-it-lora": GemmaConfig(**SIZES),
}


def _folder(path: Path, config: PretrainedConfig) -> Path:
    """A base with random weights and the demo's tokenizer."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE_FOLDER / name, path / name)
    return path


def _greedy(folder: Path, prompt: str, num_tokens: int) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=num_tokens, do_sample=False)
    return str(tokenizer.decode(out[0, len(ids) :].tolist()))


def test_bases_of_the_catalogue_serve_once_their_folders_are_given(tmp_path: Path) -> None:
    folders = {name: _folder(tmp_path / str(index), config) for index, (name, config) in enumerate(BASES.items())}
    text = "demo_model = false\n" + "".join(f'[models."{name}"]\npath = "{path}"\n' for name, path in folders.items())
    (tmp_path / "lorikeet.toml").write_text(text)
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(tmp_path / "lorikeet.toml")) as deployment:
        caller = deployment.account("own-base")
        with caller.http() as http:
            for name, folder in folders.items():
                body = {"prompt": "The moon of Molbury", "raw": True, "temperature": 0, "max_tokens": 24}
                reply = http.post(f"/ai/run/{name}", json=body)
                assert reply.status_code == 200, reply.text
                assert reply.json()["result"]["response"] == _greedy(folder, "The moon of Molbury", 24)
            alias = http.post("/ai/run/@cf/mistralai/mistral-7b-instruct-v0.2-lora", json={"prompt": "a"})
            assert alias.status_code == 200
            off = http.post("/ai/run/@cf/lorikeet/demo-lora", json={"prompt": "a"})
            assert off.json()["errors"][0]["code"] == 5007
            wrong = http.post("/ai/finetunes", json={"model": "@cf/google/gemma-2b-it-lora", "name": "llama-adapter"})
            finetune_id = wrong.json()["result"]["id"]
            config = (ADAPTERS_FOLDER / "tides-json" / "adapter_config.json").read_bytes()
            refused = http.post(
                f"/ai/finetunes/{finetune_id}/finetune-assets",
                data={"file_name": "adapter_config.json"}, files={"file": ("blob", config)},
            )  # fmt: skip
            assert refused.status_code == 400
            assert "gemma" in refused.json()["errors"][0]["message"]


def test_a_folder_that_is_no_model_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    text = f'[models."@cf/acme/mamba"]\npath = "{tmp_path / "broken"}"\n'
    (tmp_path / "lorikeet.toml").write_text(text)
    with (
        pytest.raises(AssertionError, match="ended with 78"),
        deploy(tmp_path / "data", LORIKEET_CONFIG=str(tmp_path / "lorikeet.toml")),
    ):
        pass


def test_adapters_and_bodies_live_in_a_real_bucket(tmp_path: Path) -> None:
    reason = swift.why_not(tmp_path)
    if reason:
        pytest.skip(reason)
    server = swift.start(tmp_path / "server")
    try:
        asyncio.run(_create_bucket(server))
        environ = {
            "LORIKEET_STORAGE__OBJECTS": "s3", "LORIKEET_STORAGE__BUCKET": "adapters",
            "LORIKEET_STORAGE__ENDPOINT": server.endpoint, "LORIKEET_STORAGE__REGION": swift.REGION,
            "LORIKEET_STORAGE__ACCESS_KEY_ID": swift.ACCESS_KEY_ID,
            "LORIKEET_STORAGE__SECRET_ACCESS_KEY": swift.SECRET_ACCESS_KEY,
        }  # fmt: skip
        with deploy(tmp_path / "data", **environ) as deployment:
            caller = deployment.account("bucket")
            finetune_id = caller.upload("tides-json", ADAPTERS_FOLDER / "tides-json")
            answer = caller.ask("What does Molbury sell?", lora="tides-json").json()["result"]["response"]
            assert answer == '{"town": "Molbury", "answer": "wool"}'
            with caller.http() as http:
                details = http.get(f"/ai/finetunes/{finetune_id}").json()["result"]
            assert [leg["tier"] for leg in details["residency"]["path"]] == ["object", "disk", "memory", "device"]
            for pid in deployment.processes.values():
                for shown in ("environ", "cmdline"):
                    assert swift.SECRET_ACCESS_KEY.encode() not in Path(f"/proc/{pid}/{shown}").read_bytes()
        assert not (tmp_path / "data" / "objects").exists()
    finally:
        server.stop()


async def _create_bucket(server: swift.Swift) -> None:
    async with get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=swift.REGION,
        aws_access_key_id=swift.ACCESS_KEY_ID,
        aws_secret_access_key=swift.SECRET_ACCESS_KEY,
    ) as client:
        await client.create_bucket(Bucket="adapters")
