"""What a model's memory follows from, read from `config.json` and the headers of its weights. No torch."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from runtime.errors import ModelInvalid
from runtime.model_types import model_type_of
from runtime.shards import stored_tensors
from storage.geometry import Geometry

DType = Literal["float32", "bfloat16", "float16"]

Name = TypeVar("Name", bound=str)  # of a type: a DType where the caller knows that it is one

_DEFAULT_POSITIONS: Final = 8192
_DTYPES: Final[dict[str, DType]] = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class ModelSize:
    """`num_weights`: numbers in matrices; `num_small`: in vectors (norms, biases). `dtype`: of most of the weights.

    mixed: not all matrices have it.
    """

    geometry: Geometry
    vocab_size: int
    max_positions: int
    num_weights: int
    num_small: int
    dtype: DType = "float32"
    mixed: bool = False

    def held_as(self, dtype: Name) -> Name | DType:
        """What the CPU's kernels hold the matrices in for a runtime of this type: for "float32" what the files have,
        which loses nothing and is less to read. One type for all; where files mix several that is "float32"."""
        return self.dtype if dtype == "float32" and not self.mixed else dtype

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
        stored = stored_tensors(folder)
        if config.get("tie_word_embeddings") is True:
            stored.pop("lm_head.weight", None)
        small, of_dtype = 0, Counter[DType]()
        for tensor in stored.values():
            if len(tensor.shape) < 2:
                small += tensor.num_elements
            else:
                of_dtype[_DTYPES.get(tensor.dtype, "float32")] += tensor.num_elements
        dtype: DType = of_dtype.most_common(1)[0][0] if of_dtype else "float32"
        return cls(geometry, vocab_size, max_positions, of_dtype.total(), small, dtype, len(of_dtype) > 1)
