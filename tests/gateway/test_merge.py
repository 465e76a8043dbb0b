"""Merged folders: equal to PEFT's own merge, in every type, whole or in shards; and what is refused leaves nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gateway.ingest.adapter import AdapterRefused
from gateway.ingest.merge import MergeFailed, merge_folders
from storage.geometry import MODULES
from tests.gateway import tiny_adapters as tiny

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SHARDED = {"max_shard_size": "4KB"}


def make_base(folder: Path, dtype: str, **options: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    torch.set_num_threads(1)
    base = {key: value for key, value in tiny.BASE_CONFIG.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **base)).to(getattr(torch, dtype))
    model.save_pretrained(str(folder), **options)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not copied")


def make_adapter(folder: Path, base: Path, **changes: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(str(base)), LoraConfig(**(settings | changes)))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(str(folder))


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(str(base), dtype="auto")
    return dict(PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict())


def loaded(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file as load_torch

    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_torch(str(path))
    return tensors


@pytest.mark.parametrize(
    ("dtype", "options", "changes"),
    [
        ("float32", {}, {}),
        ("float32", SHARDED, {"use_rslora": True}),
        ("float32", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}),
        ("float32", SHARDED, {"target_modules": ["q_proj", "down_proj"]}),
        ("bfloat16", SHARDED, {}),
        ("float16", {}, {}),
    ],
)
def test_equal_to_pefts_merge(tmp_path: Path, dtype: str, options: dict[str, Any], changes: dict[str, Any]) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    make_base(base, dtype, **options)
    make_adapter(adapter, base, **changes)
    modules = merge_folders(base, adapter, out)
    assert set(modules) == set(changes.get("target_modules", MODULES))
    ours, before, expected = loaded(out), loaded(base), merged_by_peft(base, adapter)
    assert set(ours) == set(before)
    assert len(list(out.glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))
    assert len(list(base.glob("*.safetensors"))) > 1 or not options
    unit = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    changed = 0
    for name, tensor in ours.items():
        assert tensor.dtype == before[name].dtype == getattr(torch, dtype)
        want, got = expected[name].double(), tensor.double()
        # The order of a sum's terms is each library's own: one unit in the last place where a value meets a tie.
        assert torch.all((want - got).abs() <= 4 * unit * (want.abs() + 1e-2)), name
        changed += not torch.equal(tensor, before[name])
        if dtype != "float32":
            assert (want != got).double().mean() < 0.01, name
    assert changed == 2 * len(modules)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in base.iterdir() if path.name != "pytorch_model.bin"
    )


def test_the_merged_folder_speaks_like_base_plus_adapter(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    make_base(base, "float32")
    make_adapter(adapter, base)
    merge_folders(base, adapter, out)
    ids = torch.arange(20).remainder(32)[None]
    with torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(str(base))(ids).logits
        apart = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(str(base)), str(adapter))(ids).logits
        whole = LlamaForCausalLM.from_pretrained(str(out))(ids).logits
    assert torch.allclose(whole, apart, atol=1e-5)
    assert not torch.allclose(whole, plain, atol=1e-2)


def write_folders(tmp_path: Path, **config: Any) -> tuple[Path, Path]:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny.write_base(base)
    weights = {}
    for layer in range(tiny.GEOMETRY.num_layers):
        for module in ("q_proj", "v_proj", "down_proj"):
            block = "mlp" if module == "down_proj" else "self_attn"
            name = f"model.layers.{layer}.{block}.{module}.weight"
            weights[name] = np.zeros(tiny.GEOMETRY.shape(module), "float32")
    save_file(weights, base / "model.safetensors")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(tiny.config(**config))
    (adapter / "adapter_model.safetensors").write_bytes(tiny.weights())
    return base, adapter


def test_a_base_of_zeros_becomes_scaling_times_b_a(tmp_path: Path) -> None:
    base, adapter = write_folders(tmp_path)
    merge_folders(base, adapter, tmp_path / "out")
    merged, lora = load_file(tmp_path / "out" / "model.safetensors"), tiny.tensors()
    for layer in range(2):
        a, b = (lora[tiny.tensor_name(layer, "q_proj", side)] for side in "AB")
        np.testing.assert_allclose(merged[f"model.layers.{layer}.self_attn.q_proj.weight"], 2.0 * (b @ a), rtol=1e-6)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    base, adapter = write_folders(tmp_path, use_dora=True)
    with pytest.raises(AdapterRefused, match="DoRA"):
        merge_folders(base, adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_bytes(tiny.config())
    with pytest.raises(MergeFailed, match="is there already"):
        merge_folders(base, adapter, adapter)
    weights = load_file(base / "model.safetensors")
    for change, why in (
        ({"model.layers.0.mlp.down_proj.weight": np.zeros((16, 24), "int8")}, "is I8"),
        ({"model.layers.0.mlp.down_proj.weight": np.zeros((24, 16), "float32")}, r"\[16, 24\]"),
    ):
        save_file(weights | change, base / "model.safetensors")
        with pytest.raises(MergeFailed, match=why):
            merge_folders(base, adapter, tmp_path / "out")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, base / "model.safetensors")
    with pytest.raises(MergeFailed, match=r"no tensor model\.layers\.1\.mlp\.down_proj"):
        merge_folders(base, adapter, tmp_path / "out")
    (base / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(MergeFailed, match=r"model\.safetensors"):
        merge_folders(base, adapter, tmp_path / "out")
    (base / "model.safetensors").unlink()
    for index in ("{}", "[]", json.dumps({"weight_map": {"a": "../adapter/adapter_model.safetensors"}})):
        (base / "model.safetensors.index.json").write_text(index)
        with pytest.raises(MergeFailed, match=r"index\.json"):
            merge_folders(base, adapter, tmp_path / "out")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterRefused, match="is missing"):
        merge_folders(base, adapter, tmp_path / "out")
    assert left(tmp_path) == ["adapter", "base"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = write_folders(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.ingest.merge._add", full)
    with pytest.raises(OSError, match="No space"):
        merge_folders(base, adapter, tmp_path / "out")
    assert left(tmp_path) == ["adapter", "base"]
