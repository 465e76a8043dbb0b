"""The catalogue: names, aliases, folders, and what it says when a model cannot be served."""

from pathlib import Path

import pytest

from gateway.catalog import Catalog
from gateway.encoders import EncoderCatalog
from gateway.errors import InvalidModelId, UnknownModel
from gateway.settings import DEMO_MODEL, Encoder, SettingsError
from tests.gateway.tiny_adapters import write_base

MISTRAL = "@cf/mistral/mistral-7b-instruct-v0.2-lora"
ALIAS = "@cf/mistralai/mistral-7b-instruct-v0.2-lora"
LLAMA = "@cf/meta-llama/llama-2-7b-chat-hf-lora"


def test_the_demo_and_the_four_of_2024_are_there() -> None:
    windows = {model.name: model.context_window for model in Catalog({}).all()}
    assert windows == {
        DEMO_MODEL: 1024,
        LLAMA: 8192,
        MISTRAL: 15000,
        "@cf/google/gemma-2b-it-lora": 8192,
        "@cf/google/gemma-7b-it-lora": 3500,
    }
    assert len({model.id for model in Catalog({}).all()}) == 5
    assert [m.id for m in Catalog({}).all()] == [m.id for m in Catalog({}).all()]


def test_the_demo_is_served_from_the_package_unless_switched_off() -> None:
    demo = Catalog({}).get(DEMO_MODEL)
    assert demo.supports_lora
    assert demo.geometry is not None
    assert [model.name for model in Catalog({}).served()] == [DEMO_MODEL]
    with pytest.raises(UnknownModel, match=r"lorikeet\.toml"):
        Catalog({DEMO_MODEL: None}).get(DEMO_MODEL)


def test_a_model_without_weights_says_which_setting_it_needs() -> None:
    for name in (MISTRAL, ALIAS):
        with pytest.raises(UnknownModel) as error:
            Catalog({}).get(name)
        assert f'[models."{MISTRAL}"] path = ' in error.value.message


@pytest.mark.parametrize(
    "name", ["", "@cf/x/y", "@CF/lorikeet/demo-lora", "../../etc", "a\0b", "x" * 10_000, "\x1b[2J"]
)
def test_an_unknown_name_is_repeated_safely(name: str) -> None:
    kind = UnknownModel if name == "@cf/x/y" else InvalidModelId
    with pytest.raises(kind) as error:
        Catalog({}).get(name)
    assert error.value.message.isprintable()
    assert len(error.value.message) < 300


def test_alias_and_canonical_name_are_one_model(tmp_path: Path) -> None:
    folder = write_base(tmp_path, model_type="mistral", max_position_embeddings=32768)
    for configured in (MISTRAL, ALIAS):
        catalog = Catalog({configured: folder})
        assert catalog.get(ALIAS) == catalog.get(MISTRAL)
        assert catalog.get(ALIAS).name == MISTRAL
        assert catalog.get(MISTRAL).context_window == 15000


def test_the_smaller_context_window_counts(tmp_path: Path) -> None:
    folder = write_base(tmp_path, max_position_embeddings=4096)
    assert Catalog({LLAMA: folder}).get(LLAMA).context_window == 4096


def test_operators_models_join(tmp_path: Path) -> None:
    catalog = Catalog(
        {"@cf/ours/base": write_base(tmp_path / "a"), "ours": write_base(tmp_path / "b", model_type="opt")}
    )
    assert catalog.get("@cf/ours/base").supports_lora
    assert catalog.get("@cf/ours/base").context_window == 512
    assert catalog.get("@cf/ours/base").author == "ours"
    assert not catalog.get("ours").supports_lora


@pytest.mark.parametrize("name", ["", "/x", "@cf/../x", "a b", "@cf/é", "x" * 200])
def test_bad_operator_names_stop_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="not a model name"):
        Catalog({name: write_base(tmp_path)})
    with pytest.raises(SettingsError, match="not a model name"):
        EncoderCatalog({name: Encoder(path=str(tmp_path), task="embed")})


def test_bad_folders_stop_the_start_and_say_where(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        Catalog({LLAMA: tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match="must be llama"):
        Catalog({LLAMA: write_base(tmp_path / "x", model_type="gemma")})
    with pytest.raises(SettingsError, match="hidden_size"):
        Catalog({LLAMA: write_base(tmp_path / "y", hidden_size=0)})
