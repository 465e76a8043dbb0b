"""BERT, RoBERTa and XLM-RoBERTa as encoders: post-norm layers, every token sees every token of its own text.

    x = LN(word[ids] + position[p] + type[t])                      p counts a text's own tokens, padding has none
    x = LN(x + O(softmax(Q K^T / sqrt(d) + mask) V));  x = LN(x + W2 gelu(W1 x))
    embed: the first token, or the mean over a text's own tokens, scaled to length 1
    rank:  sigmoid of the classifier's one logit

Weights are float32 on a CPU. Shapes: B texts padded to T tokens, H = hidden size. One thread at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from runtime.encoder.config import EncoderShape, Pooling, Task, read_shape
from runtime.weights import Checkpoint, open_checkpoint

Linear = tuple[torch.Tensor, torch.Tensor]


class _Layer:
    def __init__(self, read: "_Reader", name: str, shape: EncoderShape) -> None:
        hidden, inner = shape.hidden_size, shape.intermediate_size
        own = f"{name}.attention.self"
        self.qkv = read.stacked([f"{own}.query", f"{own}.key", f"{own}.value"], hidden, hidden)
        self.out = read.linear(f"{name}.attention.output.dense", hidden, hidden)
        self.norm = read.norm(f"{name}.attention.output.LayerNorm")
        self.up = read.linear(f"{name}.intermediate.dense", inner, hidden)
        self.down = read.linear(f"{name}.output.dense", hidden, inner)
        self.last_norm = read.norm(f"{name}.output.LayerNorm")


class _Reader:
    """Tensors of the folder by their names behind the family's prefix."""

    def __init__(self, checkpoint: Checkpoint, shape: EncoderShape, device: torch.device) -> None:
        prefix = "bert." if shape.model_type == "bert" else "roberta."
        self._prefix = prefix if prefix + "embeddings.word_embeddings.weight" in checkpoint else ""
        self._checkpoint, self._hidden, self._device = checkpoint, shape.hidden_size, device

    def table(self, name: str, rows: int) -> torch.Tensor:
        return self._tensor(f"{self._prefix}{name}.weight", (rows, self._hidden))

    def norm(self, name: str) -> Linear:
        sizes = (self._hidden,)
        return self._tensor(f"{self._prefix}{name}.weight", sizes), self._tensor(f"{self._prefix}{name}.bias", sizes)

    def linear(self, name: str, rows: int, columns: int, *, is_head: bool = False) -> Linear:
        name = name if is_head else self._prefix + name
        return self._tensor(f"{name}.weight", (rows, columns)), self._tensor(f"{name}.bias", (rows,))

    def stacked(self, names: Sequence[str], rows: int, columns: int) -> Linear:
        weights = [f"{self._prefix}{name}.weight" for name in names]
        biases = [f"{self._prefix}{name}.bias" for name in names]
        read = self._checkpoint.fused
        return (
            read(weights, [(rows, columns)] * len(names), torch.float32, self._device),
            read(biases, [(rows,)] * len(names), torch.float32, self._device),
        )

    def skip(self, *names: str) -> None:
        for name in names:
            self._checkpoint.skip(self._prefix + name)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._checkpoint.tensor(name, shape, torch.float32, self._device)


class BertEncoder:
    """One model. `encode` and `rank` take texts as token ids and give one row, or one number, a text."""

    def __init__(self, folder: Path, task: Task, device: torch.device) -> None:
        """Raises ModelInvalid when the folder does not hold such a model, or holds tensors that nobody would use."""
        self.shape = shape = read_shape(folder)
        self.task, self._device = task, device
        checkpoint = open_checkpoint(folder)
        read = _Reader(checkpoint, shape, device)
        self._words = read.table("embeddings.word_embeddings", shape.vocab_size)
        self._positions = read.table("embeddings.position_embeddings", shape.num_positions)
        self._types = read.table("embeddings.token_type_embeddings", shape.num_types)
        self._norm = read.norm("embeddings.LayerNorm")
        self._layers = [_Layer(read, f"encoder.layer.{index}", shape) for index in range(shape.num_layers)]
        self._head: list[Linear] = []
        if task == "rank":
            first = ("pooler.dense", False) if shape.model_type == "bert" else ("classifier.dense", True)
            last = "classifier" if shape.model_type == "bert" else "classifier.out_proj"
            hidden = shape.hidden_size
            self._head = [
                read.linear(first[0], hidden, hidden, is_head=first[1]), read.linear(last, 1, hidden, is_head=True),
            ]  # fmt: skip
        else:
            read.skip("pooler.dense.weight", "pooler.dense.bias")
        read.skip("embeddings.position_ids", "embeddings.token_type_ids")
        checkpoint.finish()

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[Sequence[int]], poolings: Sequence[Pooling]) -> torch.Tensor:
        """[B, H] float32, each of length 1."""
        hidden, mask = self._forward(token_ids, ())
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        is_mean = torch.tensor([pooling == "mean" for pooling in poolings], device=self._device).unsqueeze(-1)
        return functional.normalize(torch.where(is_mean, mean, hidden[:, 0]), dim=-1)

    @torch.inference_mode()
    def rank(self, token_ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> torch.Tensor:
        """[B] float32 between 0 and 1."""
        hidden, _ = self._forward(token_ids, types)
        (first, first_bias), (last, last_bias) = self._head
        inner = torch.tanh(functional.linear(hidden[:, 0], first, first_bias))
        return torch.sigmoid(functional.linear(inner, last, last_bias)).squeeze(-1)

    def _forward(
        self, token_ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden [B, T, H], mask [B, T])."""
        longest = max(map(len, token_ids))
        ids = torch.zeros((len(token_ids), longest), dtype=torch.long)
        kinds = torch.zeros_like(ids)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(token_ids):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = True
            if types and self.shape.num_types > 1:
                kinds[row, : len(text)] = torch.tensor(types[row])
        ids, kinds, mask = ids.to(self._device), kinds.to(self._device), mask.to(self._device)
        places = torch.arange(longest, device=self._device) + self.shape.first_position
        x = self._words[ids] + self._positions[places] + self._types[kinds]
        x = self._normed(x, self._norm)
        seen = mask[:, None, None, :]
        for layer in self._layers:
            x = self._layer(layer, x, seen)
        return x, mask

    def _layer(self, layer: _Layer, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        heads = self.shape.num_heads
        qkv = functional.linear(x, *layer.qkv).view(batch, length, 3, heads, hidden // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        said = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self._normed(
            x + functional.linear(said.transpose(1, 2).reshape(batch, length, hidden), *layer.out), layer.norm
        )
        inner = functional.gelu(functional.linear(x, *layer.up))
        return self._normed(x + functional.linear(inner, *layer.down), layer.last_norm)

    def _normed(self, x: torch.Tensor, norm: Linear) -> torch.Tensor:
        return functional.layer_norm(x, (self.shape.hidden_size,), *norm, self.shape.eps)


def check_ids(shape: EncoderShape, token_ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> str | None:
    """Why these cannot be encoded; None when they can."""
    for row, text in enumerate(token_ids):
        if not 1 <= len(text) <= shape.max_tokens:
            return f"a text has {len(text)} tokens; 1 to {shape.max_tokens} can be encoded"
        if not all(0 <= token < shape.vocab_size for token in text):
            return f"a token id is not below {shape.vocab_size}"
        if types and (len(types[row]) != len(text) or not all(0 <= kind < 2 for kind in types[row])):
            return "types must be 0 or 1, one a token"
    return None
