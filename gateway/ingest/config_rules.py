"""`adapter_config.json`: what a PEFT LoRA config may say, and what this server would compute wrongly and so refuses.

Shape: `check_config` turns the file's bytes into an `AdapterConfig` (all that serving needs) and a list of broken
rules, every one of them, each a sentence. A config that breaks rules but can be understood is still returned, so that
the tensors can be held against it and all that is wrong is told at once. Nothing in the file is ever opened, fetched
or run: the base's name is read only to notice that it names another family. Settings that are off, empty or null are
always accepted, so that files of newer tools pass as long as they ask for plain LoRA.
"""

import json
import math
import re
from typing import Any, Final, NamedTuple

from gateway.ingest.patterns import Patterns
from storage.geometry import MODULES, Geometry

MAX_CONFIG_BYTES: Final = 1_000_000
MAX_ALPHA: Final = 1e6

# Settings of training or of tools that do not change what A and B mean.
_HARMLESS: Final = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "model_type", "peft_type", "peft_version",
    "qalora_group_size", "r", "alpha_pattern", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora", "init_lora_weights", "eva_config", "bias", "ensure_weight_tying",
})  # fmt: skip
# Each changes the arithmetic or the base; the text finishes "... is not supported: ".
_REFUSED: Final[dict[str, str]] = {
    "use_dora": "DoRA rescales the whole weight; train with use_dora=false",
    "lora_bias": "biases are not served; train with lora_bias=false",
    "modules_to_save": "full weights of modules are not served; train without modules_to_save",
    "layer_replication": "the base's layers cannot be changed",
    "trainable_token_indices": "the base's vocabulary cannot be changed",
    "target_parameters": "only linear modules can be adapted",
    "fan_in_fan_out": "the base's weights are not stored transposed; train with fan_in_fan_out=false",
    "megatron_config": "Megatron's parallel layers are not served; export the adapter for transformers",
    "alora_invocation_tokens": "activated LoRA switches on within a prompt; train without alora_invocation_tokens",
    "use_qalora": "quantised bases are not allowed; train on the full-precision base",
    "loftq_config": "quantised bases are not allowed; train on the full-precision base",
    "quantization_config": "quantised bases are not allowed; train on the full-precision base",
    "load_in_4bit": "quantised bases are not allowed; train on the full-precision base",
    "load_in_8bit": "quantised bases are not allowed; train on the full-precision base",
    "corda_config": "CorDA changes the base's weights; convert the adapter to plain LoRA when saving it",
    "lora_ga_config": "LoRA-GA changes the base's weights; convert the adapter to plain LoRA when saving it",
    "velora_config": "only plain LoRA is served",
    "monteclora_config": "only plain LoRA is served",
    "arrow_config": "only plain LoRA is served",
    "kasa_config": "only plain LoRA is served",
    "use_bdlora": "only plain LoRA is served",
}
_PLAIN_INITS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
_QUANTISED = re.compile(
    r"(?i)(?:^|[-_./])(?:bnb|gptq|awq|gguf|exl2|int[48]|[48]-?bit|q[2-8]_[0k](?:_[sml])?)(?:$|[-_./])"
)
# Families as they show in the last part of a model's name; short ones only as a word of their own.
_FAMILY = re.compile(r"(?i)llama|mixtral|mistral|gemma|qwen|falcon|bloom|starcoder|(?<![a-z])(?:phi|gpt2|opt)(?![a-z])")


class AdapterConfig(NamedTuple):
    """What serving needs of a config. `targets` is None when the file selects modules by an expression."""

    rank: int
    alpha: float
    use_rslora: bool
    ranks: Patterns
    alphas: Patterns
    targets: tuple[str, ...] | None

    def rank_of(self, module_name: str) -> int:
        """The rank of one module, by its full name in the base."""
        own = self.ranks.value(module_name)
        return self.rank if own is None else int(own)

    def scaling_of(self, module_name: str) -> float:
        """alpha/r, or alpha/sqrt(r) with use_rslora."""
        own = self.alphas.value(module_name)
        alpha, rank = self.alpha if own is None else own, self.rank_of(module_name)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def check_config(data: bytes, geometry: Geometry, max_rank: int) -> tuple[AdapterConfig | None, list[str]]:
    """The config as far as it can be understood, and every rule that it breaks."""
    try:
        raw = _parse(data)
    except ValueError as error:
        return None, [f"adapter_config.json {error}"]
    reasons = [*_kind(raw, geometry), *_refused(raw)]
    rank, alpha = _rank(raw.get("r")), _alpha(raw.get("lora_alpha"))
    if rank is None:
        reasons.append(f"r must be a whole number of at least 1, not {_shown(raw.get('r'))}")
    elif rank > max_rank:
        reasons.append(f"rank {rank} is above the limit of {max_rank}; train with r={max_rank} or less")
    if alpha is None:
        reasons.append(f"lora_alpha must be above 0 and at most {MAX_ALPHA:g}, not {_shown(raw.get('lora_alpha'))}")
    if not isinstance(raw.get("use_rslora") or False, bool):
        reasons.append(f"use_rslora must be true or false, not {_shown(raw['use_rslora'])}")
    ranks = _pattern(raw, "rank_pattern", reasons)
    alphas = _pattern(raw, "alpha_pattern", reasons)
    if ranks is not None and (largest := max((raw.get("rank_pattern") or {}).values(), default=0)) > max_rank:
        reasons.append(f"rank_pattern asks for rank {largest}, above the limit of {max_rank}")
    targets = _targets(raw.get("target_modules"), reasons)
    if ranks is None or alphas is None or rank is None or alpha is None:
        return None, reasons
    return AdapterConfig(rank, alpha, bool(raw.get("use_rslora")), ranks, alphas, targets), reasons


def _parse(data: bytes) -> dict[str, Any]:
    """Raises ValueError with the rest of a sentence."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"has {len(data)} bytes; at most {MAX_CONFIG_BYTES} are accepted")
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_not_json)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - one type for all that is wrong with the file
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _not_json(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _kind(raw: dict[str, Any], geometry: Geometry) -> list[str]:
    """Is it LoRA, for a causal model, of this family, on a base in full precision?"""
    reasons = []
    if raw.get("peft_type") != "LORA":
        reasons.append(f'peft_type must be "LORA", not {_shown(raw.get("peft_type"))}')
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        reasons.append(f'task_type must be "CAUSAL_LM", not {_shown(raw["task_type"])}')
    family = raw.get("model_type")
    if family is not None and family != geometry.model_type:
        reasons.append(f"model_type is {_shown(family)}, but the finetune's base model is {geometry.model_type!r}")
    base = raw.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        reasons.append("base_model_name_or_path must be a string")
    elif base:
        named = [family.lower() for family in _FAMILY.findall(base.rstrip("/").rsplit("/", 1)[-1][:256])]
        if named and not any(geometry.model_type.startswith(family) for family in named):
            reasons.append(
                f"base_model_name_or_path names a {named[0]} model, but the finetune's base model is "
                f"{geometry.model_type!r}"
            )
        if _QUANTISED.search(base[:1024]):
            reasons.append("base_model_name_or_path names a quantised model; train on the full-precision base")
    return reasons


def _refused(raw: dict[str, Any]) -> list[str]:
    reasons = []
    for key, value in raw.items():
        if key in _REFUSED:
            if value:
                reasons.append(f"{key} is not supported: {_REFUSED[key]}")
        elif key not in _HARMLESS and (value is True or (isinstance(value, dict | list) and value)):
            reasons.append(f"{_shown(key)} is switched on but not known here; only plain LoRA is served")
    if raw.get("bias") not in (None, "none"):
        reasons.append(f'bias must be "none", not {_shown(raw["bias"])}: biases are not served')
    init = raw.get("init_lora_weights")
    if not (init is None or isinstance(init, bool | str)) or (isinstance(init, str) and init not in _PLAIN_INITS):
        reasons.append(
            f"init_lora_weights {_shown(init)} is not supported: it changes the base's weights or the arithmetic; "
            "convert the adapter to plain LoRA when saving it"
        )
    return reasons


def _pattern(raw: dict[str, Any], key: str, reasons: list[str]) -> Patterns | None:
    pairs = raw.get(key) or {}
    checked = _rank if key == "rank_pattern" else _alpha
    if not isinstance(pairs, dict) or any(checked(value) is None for value in pairs.values()):
        kind = "whole numbers of at least 1" if key == "rank_pattern" else f"numbers above 0, at most {MAX_ALPHA:g}"
        reasons.append(f"{key} must map module names to {kind}")
        return None
    try:
        return Patterns(pairs)
    except ValueError as error:
        reasons.append(f"{key} {error}")
        return None


def _targets(targets: Any, reasons: list[str]) -> tuple[str, ...] | None:
    if targets is None or isinstance(targets, str):
        return None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        reasons.append("target_modules must be a list of module names or a string")
        return None
    if foreign := [target for target in targets if target.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens")]:
        reasons.append(f"target_modules names {_shown(foreign[0])}; only {', '.join(MODULES)} can be adapted")
    elif targets and not any(target.rsplit(".", 1)[-1] in MODULES for target in targets):
        reasons.append(f"target_modules names none of the base's modules {', '.join(MODULES)}")
    return tuple(targets)


def _rank(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value < 2**31 else None


def _alpha(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value <= MAX_ALPHA else None


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # an int too long to print
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
