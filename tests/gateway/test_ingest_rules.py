"""Rules on adapter_config.json and on tensors, one by one; patterns as PEFT matches them; packing of mixed types."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from gateway.demo import ADAPTERS_FOLDER
from gateway.ingest.adapter import AdapterRefused, check_adapter, pack
from gateway.ingest.config_rules import check_config
from gateway.ingest.inspection import inspect_folder
from gateway.ingest.patterns import Patterns
from gateway.settings import Adapters
from storage.geometry import Geometry
from storage.packed import read_packed
from tests.gateway import tiny_adapters as tiny

LIMITS = Adapters()


def reasons_of(data: bytes, geometry: Geometry = tiny.GEOMETRY) -> list[str]:
    config, reasons = check_config(data, geometry, 8)
    assert config is not None or reasons
    return reasons


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": None},
        {"task_type": None},
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": "/srv/our-own-base"},
        {"base_model_name_or_path": "meta-llama/Llama-2-7b-chat-hf"},
        {"base_model_name_or_path": "../../etc/passwd"},
        {"base_model_name_or_path": "http://169.254.169.254/llama"},
        {"lora_alpha": 0.5},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3.5}},
        {"rank_pattern": None, "alpha_pattern": None},
        {"target_modules": "all-linear"},
        {"target_modules": ["model.layers.0.self_attn.q_proj"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}},
        {"some_future_number": 5, "some_future_text": "x", "some_future_flag": False, "some_future_list": []},
    ],
)
def test_plain_lora_is_accepted(changes: dict[str, Any]) -> None:
    assert reasons_of(tiny.config(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"model_type": "mistral"}, "model_type"),
        ({"model_type": 5}, "model_type"),
        ({"model_type": None, "base_model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"}, "names a mistral"),
        ({"base_model_name_or_path": "@cf/google/gemma-2b-it-lora"}, "names a gemma"),
        ({"base_model_name_or_path": ["llama"]}, "must be a string"),
        ({"base_model_name_or_path": "TheBloke/Llama-2-7B-GPTQ"}, "quantised"),
        ({"base_model_name_or_path": "unsloth/llama-2-7b-bnb-4bit"}, "quantised"),
        ({"r": 9}, "above the limit of 8"),
        ({"r": 0}, "r must be"),
        ({"r": -1}, "r must be"),
        ({"r": 4.0}, "r must be"),
        ({"r": True}, "r must be"),
        ({"r": "4"}, "r must be"),
        ({"r": None}, "r must be"),
        ({"r": 10**400}, "r must be"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -8}, "lora_alpha"),
        ({"lora_alpha": 1e30}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 16}}, "above the limit of 8"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"(a+)+$": 4}}, "not accepted"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"alora_invocation_tokens": [5]}, "alora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": "corda"}, "init_lora_weights"),
        ({"init_lora_weights": "mica"}, "init_lora_weights"),
        ({"init_lora_weights": ["gaussian"]}, "init_lora_weights"),
        ({"use_next_years_variant": True}, "use_next_years_variant"),
        ({"next_years_config": {"a": 1}}, "next_years_config"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["fc1"]}, "none of the base's modules"),
        ({"target_modules": [5]}, "target_modules"),
    ],
)
def test_each_refusal_names_its_rule(changes: dict[str, Any], why: str) -> None:
    reasons = reasons_of(tiny.config(**changes))
    assert len(reasons) == 1, reasons
    assert why in reasons[0]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[1]", b'"x"', b"\xff{}", b"\xef\xbb\xbf{}", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"{} {}",
        b'{"a":' * 100_000, b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}", json.dumps(tiny.CONFIG).encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_not_json_has_one_reason(data: bytes) -> None:
    assert len(reasons_of(data)) == 1


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*tiny.CONFIG, "use_qalora", "init_lora_weights", "fan_in_fan_out", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=4,
    )
)
def test_no_config_crashes_the_check(changes: dict[str, Any]) -> None:
    config, reasons = check_config(tiny.config(**changes), tiny.GEOMETRY, 8)
    assert config is not None or reasons
    if config is not None and not reasons:
        assert 1 <= config.rank_of("model.layers.0.self_attn.q_proj") <= 8
        assert 0 < config.scaling_of("model.layers.0.self_attn.q_proj") < math.inf


KEYS = [
    "q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "proj", "1.q_proj",
    "^model.layers.1.self_attn.q_proj", "^q_proj", r"layers\.0\..*", r"layers\.\d+\.mlp\.down_proj",
    "layers.[01].mlp.up_proj",
    ".*_proj", "(q|v)_proj", "(?:self_attn|mlp).(?:o|down)_proj", "model.layers.1.self_attn.q_proj$", r"q\_proj", "x",
    "layers.1{1,2}.mlp.gate_proj", "self_attn.[^q]_proj",
]  # fmt: skip
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{module}" for layer in (0, 1, 11) for module in MODULES]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(KEYS), unique=True, max_size=6), st.sampled_from(NAMES))
def test_patterns_match_as_in_peft(keys: list[str], name: str) -> None:
    pairs = {key: number for number, key in enumerate(keys, 1)}
    try:
        own = Patterns(pairs).value(name)
    except ValueError:
        assert r"q\_proj" in keys
        return
    key = get_pattern_key(list(pairs), name)
    assert own == pairs.get(key)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+$",
        "(.*)*",
        ".*.*.*q",
        "a|b",
        "(?=x)",
        "(?P<n>x)",
        "[a-z]+[a-z]+[a-z]+",
        "\\w+",
        "(a|b)+",
        "",
        "[",
        "{9}",
    ],
)
def test_patterns_that_could_run_away_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="has the key"):
        Patterns({key: 4})


def test_the_slowest_accepted_patterns_end_soon() -> None:
    patterns = Patterns({f"^.*[a-z_]*{number}x": 4 for number in range(64)})
    began = time.perf_counter()
    for layer in range(100):
        assert patterns.value(f"model.layers.{layer}.self_attn.q_proj") is None
    assert time.perf_counter() - began < 2


def refused(tmp_path: Path, config: bytes, weights: bytes) -> tuple[str, ...]:
    path = tmp_path / "weights"
    path.write_bytes(weights)
    with pytest.raises(AdapterRefused) as error:
        check_adapter(config, path, tiny.GEOMETRY, 8)
    return error.value.reasons


def renamed(old: str, new: str) -> tiny.Tensors:
    made = tiny.tensors()
    made[new] = made.pop(old)
    return made


A, B = tiny.tensor_name(0, "q_proj", "A"), tiny.tensor_name(0, "q_proj", "B")


@pytest.mark.parametrize(
    ("made", "whys"),
    [
        ({}, ["no tensors"]),
        ({k: v for k, v in tiny.tensors().items() if k != A}, ["no lora_A"]),
        ({k: v for k, v in tiny.tensors().items() if k != B}, ["no lora_B"]),
        (renamed(A, A.replace("layers.0", "layers.999")), ["2 layers", "no lora_A"]),
        (renamed(A, A.replace("layers.0", "layers.00")), ["not known", "no lora_A"]),
        (renamed(A, A.replace("q_proj", "z_proj")), ["no module self_attn.z_proj", "no lora_A"]),
        (renamed(A, A.replace("self_attn", "mlp")), ["no module mlp.q_proj", "no lora_A"]),
        (tiny.tensors() | {"base_model.model.lm_head.weight": np.zeros(3, "float32")}, ["output layer"]),
        (tiny.tensors() | {A.replace("lora_A.weight", "lora_magnitude_vector"): np.zeros(3, "float32")}, ["DoRA"]),
        (tiny.tensors() | {A.replace(".weight", ".bias"): np.zeros(3, "float32")}, ["biases"]),
        (tiny.tensors() | {A.replace("lora_A.weight", "lora_A.default.weight"): tiny.tensors()[A]}, ["same matrix"]),
        (tiny.tensors(modules=("q_proj", "o_proj")), ["target_modules"] * 4),
        (tiny.tensors() | {A: tiny.tensors()[A].T.copy()}, ["shape"]),
        (tiny.tensors() | {A: tiny.tensors()[A].reshape(4, 4, 4)}, ["shape"]),
        (tiny.tensors() | {A: tiny.tensors()[A].astype("int32")}, ["dtype I32", "no lora_A"]),
        (tiny.tensors() | {A: np.full_like(tiny.tensors()[A], np.inf)}, ["NaN or infinite"]),
        (tiny.tensors(dtype="float16") | {B: np.full((16, 4), -np.inf, "float16")}, ["NaN or infinite"]),
    ],
)
def test_each_tensor_rule(tmp_path: Path, made: tiny.Tensors, whys: list[str]) -> None:
    reasons = refused(tmp_path, tiny.config(), tiny.weights(made))
    assert len(reasons) == len(whys), reasons
    for why in whys:
        assert any(why in reason for reason in reasons)


def test_every_broken_rule_of_both_files_is_told_at_once(tmp_path: Path) -> None:
    made = tiny.tensors(rank=9) | {B: np.zeros((3, 3), "float32")}
    made[tiny.tensor_name(1, "v_proj", "A")][0, 0] = np.nan
    made["base_model.model.lm_head.weight"] = np.zeros(3, "float32")
    del made[tiny.tensor_name(1, "down_proj", "B")]
    reasons = refused(tmp_path, tiny.config(r=9, use_dora=True, bias="all"), tiny.weights(made))
    expected = ["above the limit of 8", "use_dora", "bias must be", "output layer", "has shape [3, 3]",
                "down_proj has no lora_B", "NaN or infinite"]  # fmt: skip
    assert len(reasons) == len(expected), reasons
    for why in expected:
        assert any(why in reason for reason in reasons), why


def test_inspection_tells_a_file_too_large_beside_the_rest(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(tiny.config(use_dora=True))
    (tmp_path / "adapter_model.safetensors").write_bytes(tiny.weights(tiny.tensors(rank=5)))
    reasons = inspect_folder(tmp_path, tiny.GEOMETRY, Adapters(max_bytes=1_000)).reasons
    for why in ("limit is 1000", "DoRA", "shape"):
        assert any(why in reason for reason in reasons), why


def bf16_file(values: np.ndarray[Any, np.dtype[np.uint16]], name: str = A) -> bytes:
    """A file whose one tensor is changed to these bfloat16 bits."""
    made = tiny.tensors()
    header, blobs, offset = {}, [], 0
    for key, array in made.items():
        data = values.tobytes() if key == name else array.tobytes()
        dtype = "BF16" if key == name else "F32"
        header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        blobs.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_one_bad_bfloat16_is_found(tmp_path: Path, bits: int) -> None:
    values = np.zeros((4, 16), "uint16")
    values[3, 15] = bits
    assert refused(tmp_path, tiny.config(), bf16_file(values)) == (f"tensor {A} holds NaN or infinite values",)


def test_mixed_types_are_widened_exactly(tmp_path: Path) -> None:
    bits = np.arange(0x3F80, 0x3F80 + 64, dtype="uint16").reshape(4, 16)
    path = tmp_path / "weights"
    path.write_bytes(bf16_file(bits))
    adapter = check_adapter(tiny.config(), path, tiny.GEOMETRY, 8)
    packed = pack(adapter, path, tiny.GEOMETRY, tmp_path / "packed")
    assert packed.dtype == "float32"
    parsed = read_packed((tmp_path / "packed").read_bytes())
    a, _ = parsed.matrices(parsed.header.entries[0])
    np.testing.assert_array_equal(a, (bits.astype("uint32") << 16).view("float32"))


def test_ranks_and_scalings_follow_the_patterns(tmp_path: Path) -> None:
    made = tiny.tensors()
    for side, array in (("A", np.ones((8, 16), "float32")), ("B", np.ones((16, 8), "float32"))):
        made[tiny.tensor_name(1, "q_proj", side)] = array
    path = tmp_path / "weights"
    path.write_bytes(tiny.weights(made))
    config = tiny.config(rank_pattern={"layers.1.self_attn.q_proj": 8}, alpha_pattern={"down_proj": 2}, use_rslora=True)
    adapter = check_adapter(config, path, tiny.GEOMETRY, 8)
    found = {(m.layer, m.module): (m.rank, m.scaling) for m in adapter.modules}
    assert found[0, "q_proj"] == (4, 4.0)
    assert found[1, "q_proj"] == (8, 8 / math.sqrt(8))
    assert found[0, "down_proj"] == (4, 1.0)
    assert adapter.rank == 8


@pytest.mark.parametrize("cut", range(1, 100, 7))
def test_cut_anywhere_it_is_refused(tmp_path: Path, cut: int) -> None:
    whole = tiny.weights()
    reasons = refused(tmp_path, tiny.config(), whole[: len(whole) * cut // 100])
    assert len(reasons) == 1


@pytest.mark.parametrize("folder", sorted(ADAPTERS_FOLDER.iterdir()), ids=lambda folder: folder.name)
def test_the_demos_adapters_pass_inspection(folder: Path) -> None:
    geometry = Geometry.from_folder(ADAPTERS_FOLDER.parent / "base")
    inspection = inspect_folder(folder, geometry, LIMITS)
    assert inspection.ok, inspection.reasons
    assert (inspection.rank, inspection.dtype, len(inspection.modules)) == (8, "bfloat16", 7)


def test_inspection_of_a_folder_that_lacks_files(tmp_path: Path) -> None:
    assert len(inspect_folder(tmp_path, tiny.GEOMETRY, LIMITS).reasons) == 2
    (tmp_path / "adapter_config.json").write_bytes(tiny.config(r=64))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    reasons = inspect_folder(tmp_path, tiny.GEOMETRY, LIMITS).reasons
    assert ["above the limit" in reasons[0], "begins with" in reasons[1]] == [True, True]
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(2_000))
    reasons = inspect_folder(tmp_path, tiny.GEOMETRY, Adapters(max_bytes=1_000)).reasons
    assert "limit is 1000" in reasons[0]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's own making
def test_an_adapter_saved_by_peft_passes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    base = {key: value for key, value in tiny.BASE_CONFIG.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **base))
    lora = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"down_proj": 2},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, lora).save_pretrained(str(tmp_path / "adapter"))
    inspection = inspect_folder(tmp_path / "adapter", tiny.GEOMETRY, LIMITS)
    assert inspection.ok, inspection.reasons
    assert (inspection.rank, len(inspection.modules)) == (4, 7)
