"""An adapter's tensors against its config and its base: A and B in pairs, shapes that fit, values that are numbers.

Shape: `plan_modules` pairs the header's tensors into `LoraModule`s without touching their data; `not_finite` then
looks at the bits. Both return reasons instead of raising, so that a caller learns all that is wrong at once.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.ingest.config_rules import AdapterConfig
from gateway.ingest.safetensors_header import Tensor
from storage.geometry import MODULES, Geometry
from storage.packed import AdapterDtype

DTYPES: Final[dict[str, AdapterDtype]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The exponent's bits: all of them set means NaN or infinity, whatever the rest says.
_EXPONENT: Final[dict[str, tuple[str, int]]] = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_CHUNK_ELEMENTS: Final = 1 << 20
_BLOCK: Final = {
    module: "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp" for module in MODULES
}
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,4})\.(self_attn|mlp)\.([a-z_]+)\.lora_(A|B)(?:\.default)?\.weight"
)
_HINTS: Final[dict[str, str]] = {
    "lora_magnitude_vector": "DoRA is not supported",
    "lora_embedding": "embeddings cannot be adapted",
    "modules_to_save": "full weights of modules are not served",
    "embed_tokens": "the base's vocabulary cannot be changed",
    "lm_head": "the base's output layer cannot be changed",
    "bias": "biases are not served",
}


class LoraModule(NamedTuple):
    """One adapted module: where its A [rank, in] and B [out, rank] lie in the file, and its scaling."""

    layer: int
    module: str
    rank: int
    scaling: float
    a: Tensor
    b: Tensor


def plan_modules(
    tensors: Sequence[Tensor], config: AdapterConfig, geometry: Geometry
) -> tuple[list[LoraModule], list[str]]:
    """The modules in order of layer, and every broken rule. The modules count only when there is no reason."""
    reasons: list[str] = []
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for tensor in tensors:
        place = _place(tensor, geometry, config)
        if isinstance(place, str):
            reasons.append(place)
            continue
        layer, module, side = place
        sides = pairs.setdefault((layer, module), {})
        if side in sides:
            reasons.append(f"tensors {sides[side].name} and {tensor.name} are the same matrix")
        sides[side] = tensor
    if not tensors:
        reasons.append("adapter_model.safetensors holds no tensors")
    modules = []
    for (layer, module), sides in sorted(pairs.items()):
        found = _module(layer, module, sides, config, geometry)
        if isinstance(found, LoraModule):
            modules.append(found)
        else:
            reasons += found
    return modules, reasons


def _place(tensor: Tensor, geometry: Geometry, config: AdapterConfig) -> tuple[int, str, str] | str:
    """(layer, module, "A" or "B"), or why the tensor has no place in the base."""
    match = _NAME.fullmatch(tensor.name)
    if match is None:
        hint = next((text for part, text in _HINTS.items() if part in tensor.name), "only LoRA matrices are accepted")
        return (
            f"tensor {tensor.name} is not known: {hint}; names have the form "
            "base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight"
        )
    layer, block, module, side = int(match[1]), match[2], match[3], match[4]
    if _BLOCK.get(module) != block:
        return f"tensor {tensor.name}: the base has no module {block}.{module}; known are {', '.join(MODULES)}"
    if layer >= geometry.num_layers:
        return f"tensor {tensor.name}: the base has {geometry.num_layers} layers, counted from 0"
    if tensor.dtype not in DTYPES:
        return f"tensor {tensor.name} has dtype {tensor.dtype}; accepted are {', '.join(DTYPES)}"
    full = full_name(layer, module)
    if config.targets is not None and not any(full == t or full.endswith("." + t) for t in config.targets):
        return f"tensor {tensor.name} belongs to a module that target_modules does not name"
    return layer, module, side


def _module(
    layer: int, module: str, sides: dict[str, Tensor], config: AdapterConfig, geometry: Geometry
) -> LoraModule | list[str]:
    """The module, or everything that is wrong with its matrices."""
    full = full_name(layer, module)
    reasons = [f"module {full} has no lora_{side} matrix" for side in ("A", "B") if side not in sides]
    rank, (out_features, in_features) = config.rank_of(full), geometry.shape(module)
    for side, wanted in (("A", (rank, in_features)), ("B", (out_features, rank))):
        tensor = sides.get(side)
        if tensor is not None and tensor.shape != wanted:
            reasons.append(
                f"tensor {tensor.name} has shape {list(tensor.shape)}; rank {rank} of adapter_config.json and this "
                f"base need {list(wanted)}"
            )
    return reasons or LoraModule(layer, module, rank, config.scaling_of(full), sides["A"], sides["B"])


def full_name(layer: int, module: str) -> str:
    """A module's name in the base."""
    return f"model.layers.{layer}.{_BLOCK[module]}.{module}"


def not_finite(modules: Sequence[LoraModule], data: npt.NDArray[np.uint8]) -> list[str]:
    """A reason for each tensor that holds a NaN or an infinity. `data` is the whole file."""
    reasons = []
    for module in modules:
        for tensor in (module.a, module.b):
            kind, exponent = _EXPONENT[tensor.dtype]
            bits = elements(tensor, data, np.dtype(kind))
            for start in range(0, bits.size, _CHUNK_ELEMENTS):
                if ((bits[start : start + _CHUNK_ELEMENTS] & exponent) == exponent).any():
                    reasons.append(f"tensor {tensor.name} holds NaN or infinite values")
                    break
    return reasons


def elements(tensor: Tensor, data: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The tensor's elements as a flat view of the file."""
    return np.frombuffer(data, dtype, (tensor.stop - tensor.start) // dtype.itemsize, tensor.start)
