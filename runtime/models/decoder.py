"""The decoder of every supported family: they differ only by the values of `ModelConfig`.

    h = embedding(tokens) [* scale]
    each layer:  h += [norm] attention(norm(h));  h += [norm] mlp(norm(h))
    logits = [softcap] norm(h[sampled]) @ head.T

Weights are frozen dataclasses of tensors, not modules: nothing is trained here and a call costs one Python frame.
q, k, v and gate, up are fused when loading, and the last norm and the head run only for the rows that are sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from kernels.rms_norm import rms_norm
from runtime.layers.attention import Attention
from runtime.layers.kv_cache import KVCache
from runtime.layers.linear import LoraLinear
from runtime.layers.mlp import GatedMLP
from runtime.layers.step import StepInputs
from runtime.models.config import ModelConfig
from runtime.weights import open_checkpoint
from storage.geometry import GROUPS

EMBEDDING: Final = "model.embed_tokens.weight"


@dataclass(frozen=True)
class DecoderLayer:
    """Norm weights include the family's offset. The `out` norms are those of families that norm a block's output."""

    attention_norm: torch.Tensor
    attention: Attention
    attention_out_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp: GatedMLP
    mlp_out_norm: torch.Tensor | None


@dataclass(frozen=True)
class Decoder:
    """embedding and head [vocab, hidden]: one tensor where they are tied."""

    config: ModelConfig
    embedding: torch.Tensor
    embedding_scale: torch.Tensor | None
    layers: tuple[DecoderLayer, ...]
    norm: torch.Tensor
    head: torch.Tensor
    num_parameters: int

    def forward(self, step: StepInputs) -> torch.Tensor:
        """Logits [sampled rows, vocab] in the weights' dtype; writes the step's keys and values."""
        eps = self.config.norm_eps
        hidden = torch.nn.functional.embedding(step.tokens, self.embedding)
        if self.embedding_scale is not None:
            hidden = hidden * self.embedding_scale
        for layer in self.layers:
            out = layer.attention(rms_norm(hidden, layer.attention_norm, eps), step)
            hidden.add_(out if layer.attention_out_norm is None else rms_norm(out, layer.attention_out_norm, eps))
            out = layer.mlp(rms_norm(hidden, layer.mlp_norm, eps), step.lora)
            hidden.add_(out if layer.mlp_out_norm is None else rms_norm(out, layer.mlp_out_norm, eps))
        if step.sampled is not None:
            hidden = hidden.index_select(0, step.sampled)
        logits = torch.nn.functional.linear(rms_norm(hidden, self.norm, eps), self.head)
        cap = self.config.logits_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def load_decoder(
    folder: Path,
    config: ModelConfig,
    cache: KVCache,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
    matrices: torch.dtype | None = None,
) -> Decoder:
    """Reads the folder's weights. Raises ModelInvalid when they are not exactly those of this decoder.

    matrices: what embedding, head and projections are held in, for who computes in `dtype` all the same.
    """
    checkpoint = open_checkpoint(folder, progress)
    decoder = build_decoder(checkpoint, config, cache, dtype, device, matrices)
    checkpoint.finish()
    return decoder


class Weights(Protocol):
    """Where a decoder's tensors come from: `runtime.weights.Checkpoint`, which says more, or `random_weights.py`."""

    def fused(
        self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The named tensors stacked along their first dimension."""
        ...

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One tensor."""
        ...

    def skip(self, name: str) -> None:
        """This one is not needed."""
        ...


def build_decoder(
    weights: Weights,
    config: ModelConfig,
    cache: KVCache,
    dtype: torch.dtype,
    device: torch.device,
    matrices: torch.dtype | None = None,
) -> Decoder:
    """A decoder of these weights; see `load_decoder`. Raises what they raise."""
    return _Loader(weights, config, cache, dtype, device, matrices or dtype).decoder()


class _Loader:
    """The names and shapes of the Hugging Face layout."""

    def __init__(
        self,
        checkpoint: Weights,
        config: ModelConfig,
        cache: KVCache,
        dtype: torch.dtype,
        device: torch.device,
        matrices: torch.dtype,
    ) -> None:
        self._checkpoint, self._config, self._cache = checkpoint, config, cache
        self._dtype, self._device, self._matrices = dtype, device, matrices
        self._num_parameters = 0

    def decoder(self) -> Decoder:
        config, hidden = self._config, self._config.geometry.hidden_size
        embedding = head = self._tensor(EMBEDDING, (config.vocab_size, hidden), self._matrices)
        if config.ties_embedding:
            self._checkpoint.skip("lm_head.weight")
        else:
            head = self._tensor("lm_head.weight", (config.vocab_size, hidden), self._matrices)
        layers = tuple(self._layer(index) for index in range(config.geometry.num_layers))
        norm = self._norm("model.norm.weight", hidden)
        scale = config.embedding_scale
        # Rounded to the model's dtype first, as the model was trained.
        scale_tensor = None if scale is None else torch.tensor(scale, dtype=self._dtype, device=self._device)
        return Decoder(config, embedding, scale_tensor, layers, norm, head, self._num_parameters)

    def _layer(self, index: int) -> DecoderLayer:
        config, prefix = self._config, f"model.layers.{index}"
        attention = Attention(
            qkv=self._linear(index, "self_attn", 0, GROUPS["qkv"]),
            o=self._linear(index, "self_attn", 1, GROUPS["o"]),
            cache=self._cache.layers[index],
            num_heads=config.geometry.num_heads,
            kind=config.layer_kinds[index],
            qk_norm=self._qk_norm(f"{prefix}.self_attn") if config.qk_norm else None,
            norm_eps=config.norm_eps,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
        )
        mlp = GatedMLP(
            gate_up=self._linear(index, "mlp", 2, GROUPS["gate_up"]),
            down=self._linear(index, "mlp", 3, GROUPS["down"]),
            activation=config.activation,
        )
        names, hidden = config.norm_names, config.geometry.hidden_size

        def norm(name: str) -> torch.Tensor:
            return self._norm(f"{prefix}.{name}.weight", hidden)

        return DecoderLayer(
            norm(names.attention),
            attention,
            norm(names.attention_out) if names.attention_out else None,
            norm(names.mlp),
            mlp,
            norm(names.mlp_out) if names.mlp_out else None,
        )

    def _linear(self, layer: int, block: str, group: int, modules: tuple[str, ...]) -> LoraLinear:
        paths = [f"model.layers.{layer}.{block}.{module}" for module in modules]
        shapes = [self._config.geometry.shape(module) for module in modules]
        weight = self._fused([f"{path}.weight" for path in paths], shapes, self._matrices)
        bias = None
        if set(modules) <= set(self._config.biased):
            bias = self._fused([f"{path}.bias" for path in paths], [shape[:1] for shape in shapes], self._dtype)
        return LoraLinear(weight, layer, group, bias)

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        geometry = self._config.geometry
        q, k = (self._norm(f"{prefix}.{side}_norm.weight", geometry.head_dim) for side in "qk")
        return torch.cat((q.expand(geometry.num_heads, -1), k.expand(geometry.num_kv_heads, -1)))

    def _norm(self, name: str, size: int) -> torch.Tensor:
        offset = self._config.norm_offset
        weight = self._tensor(name, (size,), torch.float32 if offset else self._dtype)
        return weight + offset if offset else weight

    def _fused(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> torch.Tensor:
        tensor = self._checkpoint.fused(names, shapes, dtype, self._device)
        self._num_parameters += tensor.numel()
        return tensor

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name, shape, dtype, self._device)
        self._num_parameters += tensor.numel()
        return tensor
