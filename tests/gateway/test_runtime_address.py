"""Addresses and secrets of runtimes elsewhere, and whether the one that answers is the right one."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.catalog import Catalog
from gateway.demo import BASE_FOLDER
from gateway.runtime_address import RuntimeAddress, remote_runtimes
from gateway.runtime_match import RuntimeMatch
from gateway.settings import DEMO_MODEL, Model, Runtime, Settings, SettingsError
from runtime.client import RuntimeClient, RuntimeLost
from runtime.protocol import ModelInfo
from storage.geometry import Geometry
from tests.runtime.fakes import MODEL
from tests.runtime.serving import serving

SECRET = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a b.sock", RuntimeAddress(socket_path="/run/a b.sock")),
        ("tcp://10.0.0.7:7000", RuntimeAddress(host="10.0.0.7", port=7000)),
        ("tcp://[::1]:7000", RuntimeAddress(host="::1", port=7000)),
        ("tcp://gpu-1.internal:1", RuntimeAddress(host="gpu-1.internal", port=1)),
    ],
)
def test_addresses_read_and_written(text: str, address: RuntimeAddress) -> None:
    assert RuntimeAddress.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "unix:relative.sock", "/run/a.sock", "tcp://host", "tcp://:7000", "tcp://host:99999", "tcp://host:x",
     "tcp://host:1/path", "tcp://user:pw@host:1", "http://host:1", "tcp://[::1:1", "host:1", "tcp://host:1?x"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address of a runtime"):
        RuntimeAddress.parse(text)


def _settings(address: str, name: str = DEMO_MODEL, **model: Any) -> Settings:
    token = model.pop("shared", "")
    return Settings(runtime=Runtime(token=token), models={name: Model(path="/w", address=address, **model)})


def test_secrets_of_one_model_or_of_all() -> None:
    old, new = "@cf/mistralai/mistral-7b-instruct-v0.2-lora", "@cf/mistral/mistral-7b-instruct-v0.2-lora"
    found = remote_runtimes(_settings("tcp://h:1", old, shared=SECRET))
    assert found[new].token == SECRET
    assert remote_runtimes(_settings("unix:/s", token="own", shared=SECRET))[DEMO_MODEL].token == "own"
    assert SECRET not in repr(found)
    assert remote_runtimes(Settings(models={DEMO_MODEL: Model(path="/w")})) == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (_settings("tcp://h:1"), "shared secret of at least 16 characters; set runtime.token"),
        (_settings("tcp://h:1", token="short"), "shared secret"),
        (_settings("tcp://h:0", token=SECRET), "port is missing"),
        (_settings("h:1"), r'models\."@cf/lorikeet/demo-lora"\.address: \'h:1\' is no address'),
    ],
)
def test_what_cannot_be_used_is_named(settings: Settings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        remote_runtimes(settings)


INFO = ModelInfo(DEMO_MODEL, "float32", "cpu", 1, 1024, 64, 8, (), Geometry.from_folder(BASE_FOLDER))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"geometry": None}, None),
        ({"name": "@cf/x/y"}, f"it serves @cf/x/y and not {DEMO_MODEL}"),
        ({"vocab_size": 1025}, "has 1025 token ids and the folder here 1024"),
        ({"geometry": msgspec.structs.replace(Geometry.from_folder(BASE_FOLDER), num_layers=9)}, "has other sizes"),
    ],
)
def test_only_the_same_model_matches(changes: dict[str, Any], said: str | None) -> None:
    match = RuntimeMatch(Catalog({}).get(DEMO_MODEL))
    told = match(msgspec.structs.replace(INFO, **changes))
    assert told == said if said is None else said in (told or "")


def test_a_config_without_a_vocabulary_still_matches(tmp_path: Path) -> None:
    config = json.loads((BASE_FOLDER / "config.json").read_bytes())
    del config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert RuntimeMatch(Catalog({DEMO_MODEL: tmp_path}).get(DEMO_MODEL))(INFO) is None


async def test_the_wrong_runtime_is_told_once_and_never_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Several attempts, one line in the log, no answer; over TCP, where no file says whose socket it is."""
    seen: list[ModelInfo] = []

    def check(info: ModelInfo) -> str:
        seen.append(info)
        return "it serves another"

    async with serving(tmp_path, tcp=True) as running:
        assert running.address is not None
        host, port = running.address
        client = RuntimeClient(host=host, port=port, token="s3cret", gateway_id="g", check=check)
        with caplog.at_level(logging.ERROR):
            async with client:
                with pytest.raises(RuntimeLost, match="the wrong runtime answers: it serves another"):
                    await client.wait_ready(0.6)
                assert "it serves another" in (client.problem or "")
                assert not client.ready
        assert len(seen) > 1
        assert set(seen) == {MODEL}
        assert len([line for line in caplog.messages if "another" in line]) == 1
        assert (await running.stats()).running == 0
