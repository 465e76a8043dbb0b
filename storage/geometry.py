"""The part of a base model that an adapter must fit: its linear modules and their shapes.

Read from the `config.json` of a Hugging Face folder. The upload check (gateway), the packed file (storage) and the
device pool (runtime) all derive their sizes from this one record, so they cannot disagree.

Layout of a packed adapter and of the device pool: layer-major, then `GROUPS` in order, then the group's modules
("slices") in order. Modules of one group share their input, so their A matrices stack into one shrink.
"""

import json
from pathlib import Path
from typing import Any, Final

from storage.records import Struct

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
MODULES: Final[tuple[str, ...]] = tuple(module for group in GROUPS.values() for module in group)


class Geometry(Struct, frozen=True):
    """Sizes in elements. `model_type` is the Hugging Face family name, for example "llama"."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def shape(self, module: str) -> tuple[int, int]:
        """(out_features, in_features) of one of `MODULES`. Raises KeyError for any other name."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden_size),
            "k_proj": (key_value, self.hidden_size),
            "v_proj": (key_value, self.hidden_size),
            "o_proj": (self.hidden_size, query),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
        }[module]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Geometry":
        """From a parsed `config.json`. Raises ValueError that names the missing or wrong field."""
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            geometry = cls(
                model_type=str(config["model_type"]),
                num_layers=int(config["num_hidden_layers"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
            )
        except KeyError as error:
            raise ValueError(f"config.json does not describe a text decoder: {error.args[0]} is missing") from error
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"config.json does not describe a text decoder: {error}") from error
        for name in geometry.__struct_fields__[1:]:
            if getattr(geometry, name) < 1:
                raise ValueError(f"config.json: {name} must be at least 1")
        return geometry

    @classmethod
    def from_folder(cls, folder: Path) -> "Geometry":
        """From a model folder. Raises ValueError when `config.json` is missing, not JSON or not a decoder's."""
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{folder / 'config.json'} is not a JSON object")  # noqa: TRY004 (a wrong file)
        return cls.from_config(config)
