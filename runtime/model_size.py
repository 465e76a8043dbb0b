"""What a model's memory follows from, read from `config.json` and the headers of its weights. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.errors import ModelInvalid
from runtime.model_types import model_type_of
from runtime.shards import num_elements, tensor_shapes
from storage.geometry import Geometry

_DEFAULT_POSITIONS: Final = 8192


@dataclass(frozen=True)
class ModelSize:
    """`num_weights`: numbers in matrices; `num_small`: in vectors (norms, biases)."""

    geometry: Geometry
    vocab_size: int
    max_positions: int
    num_weights: int
    num_small: int

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelSize":
        """From `config.json` and the headers of the weights. Raises ModelInvalid."""
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
            model_type_of(config)
            geometry = Geometry.from_config(config)
            vocab_size = int(config["vocab_size"])
            max_positions = int(config.get("max_position_embeddings") or _DEFAULT_POSITIONS)
        except ValueError as error:
            raise ModelInvalid(f"{folder / 'config.json'}: {error}") from error
        except (OSError, TypeError, KeyError, AttributeError) as error:
            raise ModelInvalid(f"{folder / 'config.json'} does not describe a text decoder: {error!r}") from error
        shapes = tensor_shapes(folder)
        if config.get("tie_word_embeddings") is True:
            shapes.pop("lm_head.weight", None)
        small = sum(num_elements(shape) for shape in shapes.values() if len(shape) < 2)
        total = sum(num_elements(shape) for shape in shapes.values())
        return cls(geometry, vocab_size, max_positions, total - small, small)
