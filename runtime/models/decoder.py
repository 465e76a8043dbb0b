"""The decoder of every supported family: Llama, Mistral and Gemma differ only by the values of `ModelConfig`.

    h = embedding(tokens) [* scale]
    each layer:  h += attention(norm(h));  h += mlp(norm(h))
    logits = norm(h[sampled]) @ head.T

Weights are frozen dataclasses of tensors, not modules: nothing is trained here and a call costs one Python frame.
q, k, v and gate, up are fused when loading, and the last norm and the head run only for the rows that are sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.rms_norm import rms_norm
from runtime.layers.attention import Attention
from runtime.layers.kv_cache import KVCache
from runtime.layers.linear import LoraLinear
from runtime.layers.mlp import GatedMLP
from runtime.layers.step import StepInputs
from runtime.models.config import ModelConfig
from runtime.weights import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class DecoderLayer:
    """Norm weights include the family's offset."""

    attention_norm: torch.Tensor
    attention: Attention
    mlp_norm: torch.Tensor
    mlp: GatedMLP


@dataclass(frozen=True)
class Decoder:
    """embedding [vocab, hidden]; head is the same tensor when the model ties them."""

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
            hidden.add_(layer.attention(rms_norm(hidden, layer.attention_norm, eps), step))
            hidden.add_(layer.mlp(rms_norm(hidden, layer.mlp_norm, eps), step.lora))
        if step.sampled is not None:
            hidden = hidden.index_select(0, step.sampled)
        return torch.nn.functional.linear(rms_norm(hidden, self.norm, eps), self.head)


def load_decoder(
    folder: Path,
    config: ModelConfig,
    cache: KVCache,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> Decoder:
    """Reads the folder's weights. Raises ModelInvalid when they are not exactly those of this decoder."""
    with open_checkpoint(folder, progress) as checkpoint:
        decoder = _Loader(checkpoint, config, cache, dtype, device).decoder()
        checkpoint.finish()
        return decoder


class _Loader:
    """The names and shapes of the Hugging Face layout."""

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, cache: KVCache, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoint, self._config, self._cache = checkpoint, config, cache
        self._dtype, self._device = dtype, device
        self._num_parameters = 0

    def decoder(self) -> Decoder:
        config, hidden = self._config, self._config.geometry.hidden_size
        embedding = self._tensor("model.embed_tokens.weight", (config.vocab_size, hidden))
        layers = tuple(self._layer(index) for index in range(config.geometry.num_layers))
        norm = self._norm("model.norm.weight")
        if config.ties_embedding:
            self._checkpoint.skip("lm_head.weight")
            head = embedding
        else:
            head = self._tensor("lm_head.weight", (config.vocab_size, hidden))
        scale = config.embedding_scale
        # Rounded to the model's dtype first, as the model was trained.
        scale_tensor = None if scale is None else torch.tensor(scale, dtype=self._dtype, device=self._device)
        return Decoder(config, embedding, scale_tensor, layers, norm, head, self._num_parameters)

    def _layer(self, index: int) -> DecoderLayer:
        prefix = f"model.layers.{index}"
        attention = Attention(
            qkv=self._linear(index, "self_attn", 0, ("q_proj", "k_proj", "v_proj")),
            o=self._linear(index, "self_attn", 1, ("o_proj",)),
            cache=self._cache.layers[index],
            num_heads=self._config.geometry.num_heads,
        )
        mlp = GatedMLP(
            gate_up=self._linear(index, "mlp", 2, ("gate_proj", "up_proj")),
            down=self._linear(index, "mlp", 3, ("down_proj",)),
            activation=self._config.activation,
        )
        return DecoderLayer(
            self._norm(f"{prefix}.input_layernorm.weight"),
            attention,
            self._norm(f"{prefix}.post_attention_layernorm.weight"),
            mlp,
        )

    def _linear(self, layer: int, block: str, group: int, modules: tuple[str, ...]) -> LoraLinear:
        names = [f"model.layers.{layer}.{block}.{module}.weight" for module in modules]
        shapes = [self._config.geometry.shape(module) for module in modules]
        weight = self._checkpoint.fused(names, shapes, self._dtype, self._device)
        self._num_parameters += weight.numel()
        return LoraLinear(weight, layer, group, len(modules))

    def _norm(self, name: str) -> torch.Tensor:
        offset = self._config.norm_offset
        weight = self._tensor(name, (self._config.geometry.hidden_size,), torch.float32 if offset else self._dtype)
        return weight + offset if offset else weight

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name, shape, dtype or self._dtype, self._device)
        self._num_parameters += tensor.numel()
        return tensor
