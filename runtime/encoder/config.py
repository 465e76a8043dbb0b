"""What an encoder's process is told, and what kinds of encoders there are. No torch: the gateway makes the record."""

import json
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from runtime.errors import ConfigInvalid, ModelInvalid

Task = Literal["embed", "rank"]
Pooling = Literal["mean", "cls"]
FAMILIES: Final = ("bert", "roberta", "xlm-roberta")


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One encoder on one device. `threads`: on a CPU, 0 for torch's own choice. `batch_tokens`: padded, of a batch."""

    model: str
    model_folder: str
    task: Task
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    batch_tokens: Annotated[int, Meta(ge=16)] = 8192
    max_waiting: Annotated[int, Meta(ge=1)] = 20_000
    socket_path: str
    token: str = ""

    @classmethod
    def from_json(cls, line: bytes) -> "EncoderConfig":
        """Raises ConfigInvalid."""
        try:
            return msgspec.json.decode(line, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigInvalid(f"not a configuration: {error}") from error


class EncoderShape(msgspec.Struct, frozen=True):
    """Sizes out of a folder's `config.json`. `max_tokens`: of one text, with its special tokens."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_positions: int
    num_types: int
    first_position: int
    eps: float

    @property
    def max_tokens(self) -> int:
        """Positions that a text can have; RoBERTa's begin after that of the padding."""
        return self.num_positions - self.first_position


def read_shape(folder: Path) -> EncoderShape:
    """Raises ModelInvalid when the folder does not hold an encoder of these families."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = str(config["model_type"])
        shape = EncoderShape(
            model_type=kind,
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=int(config["num_attention_heads"]),
            intermediate_size=int(config["intermediate_size"]),
            num_positions=int(config["max_position_embeddings"]),
            num_types=int(config["type_vocab_size"]),
            first_position=0 if kind == "bert" else int(config["pad_token_id"]) + 1,
            eps=float(config.get("layer_norm_eps", 1e-12)),
        )
        activation = config.get("hidden_act", "gelu")
        positions = config.get("position_embedding_type", "absolute")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelInvalid(f"{folder}: config.json does not describe an encoder: {error!r}") from error
    if kind not in FAMILIES or activation != "gelu" or positions not in (None, "absolute"):
        raise ModelInvalid(
            f"{folder}: an encoder must be one of {', '.join(FAMILIES)} with gelu and absolute positions; this is "
            f"{kind} with {activation} and {positions}"
        )
    if shape.hidden_size % shape.num_heads or shape.max_tokens < 4:
        raise ModelInvalid(f"{folder}: config.json has sizes that do not fit together")
    return shape
