"""The decoder for a device: the layers of `decoder.py`, launched as few kernels as there are, and never waited for.

    h = embedding(ids) [* scale];  x = norm(h)
    each layer:  x = attention(x);  [x = norm(x)]  h += x, x = norm(h)     (sum and norm are one kernel)
                 x = mlp(x);        [x = norm(x)]  h += x, x = the next layer's norm(h), or the last one's
    logits = [softcap] x[sampled] @ head.T

Everything is launched in the current queue from what lies on the device, so the same call may be captured in a graph.
Weights are those that `load_decoder` made; matrices are multiplied by torch's libraries, the rest by `kernels/`.
"""

from collections.abc import Sequence

import torch

from kernels.device_attention import device_attention
from kernels.head_norm import head_norm_
from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv
from kernels.silu_mul import gated_activation
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.attention import Attention
from runtime.layers.device_step import DeviceStep
from runtime.layers.linear import LoraLinear
from runtime.layers.rotary import Rotations
from runtime.models.decoder import Decoder, DecoderLayer

Turns = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(cos, sin) of the step's positions, by rotary table."""


class DeviceDecoder:
    """One model. It keeps nothing of a step."""

    def __init__(self, decoder: Decoder, pool: AdapterPool, rotations: Rotations) -> None:
        self._decoder, self._pool, self._rotations = decoder, pool, rotations
        self._windows = tuple(kind.window for kind in decoder.config.kinds)

    def forward(self, step: DeviceStep, drawn: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [sampled, vocab] in the weights' dtype, in `out` where it is given; writes the step's keys and values.

        drawn: [rows] int64, the tokens that the last step drew, none below 0.
        """
        decoder, eps = self._decoder, self._decoder.config.norm_eps
        # Where a token is not the last step's, some other one is looked up and not taken.
        before = drawn.index_select(0, step.sources.clamp(min=0))
        ids = torch.where(step.sources >= 0, before, step.ids)
        hidden = torch.nn.functional.embedding(ids, decoder.embedding)
        if decoder.embedding_scale is not None:
            hidden = hidden * decoder.embedding_scale
        turns = [
            (cos.index_select(0, step.positions), sin.index_select(0, step.positions))
            for cos, sin in self._rotations.tables
        ]
        layers = decoder.layers
        x = rms_norm(hidden, layers[0].attention_norm, eps)
        for index, layer in enumerate(layers):
            x = self._attended(x, layer, step, turns)
            x = rms_norm(x, layer.mlp_norm, eps, hidden)
            x = self._mlp(x, layer, step)
            if index + 1 < len(layers):
                x = rms_norm(x, layers[index + 1].attention_norm, eps, hidden)
        if step.sampled is not None:
            x, hidden = x.index_select(0, step.sampled), hidden.index_select(0, step.sampled)
        x = rms_norm(x, decoder.norm, eps, hidden)
        logits = torch.mm(x, decoder.head.T) if out is None else torch.mm(x, decoder.head.T, out=out)
        cap = decoder.config.logits_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _attended(self, x: torch.Tensor, layer: DecoderLayer, step: DeviceStep, turns: Turns) -> torch.Tensor:
        attention: Attention = layer.attention
        qkv = self._linear(attention.qkv, x, step)
        if attention.qk_norm is not None:
            head_norm_(qkv, attention.qk_norm, attention.norm_eps)
        cos, sin = turns[self._rotations.of_kind[attention.kind]]
        q = rope_write_kv(qkv, cos, sin, attention.cache, step.places, attention.num_heads)
        window = self._windows[attention.kind]
        attended = device_attention(q, attention.cache, step.attention, window, attention.scale, attention.softcap)
        out = self._linear(attention.o, attended.view(x.shape[0], -1), step)
        norm = layer.attention_out_norm
        return out if norm is None else rms_norm(out, norm, self._decoder.config.norm_eps)

    def _mlp(self, x: torch.Tensor, layer: DecoderLayer, step: DeviceStep) -> torch.Tensor:
        gated = gated_activation(self._linear(layer.mlp.gate_up, x, step), layer.mlp.activation)
        out = self._linear(layer.mlp.down, gated, step)
        return out if layer.mlp_out_norm is None else rms_norm(out, layer.mlp_out_norm, self._decoder.config.norm_eps)

    def _linear(self, linear: LoraLinear, x: torch.Tensor, step: DeviceStep) -> torch.Tensor:
        y = torch.nn.functional.linear(x, linear.weight, linear.bias)
        if step.segments is not None and step.groups >> linear.group & 1:
            weights, group = self._pool.weights(linear.layer, linear.group), self._pool.groups[linear.group]
            h = lora_shrink(x, weights.a, step.segments, group.first_module)
            lora_expand(h, weights.b, weights.scaling, group.slices, step.segments, y, group.first_module)
        return y
