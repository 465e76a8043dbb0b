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
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv
from kernels.silu_mul import gated_activation
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.attention import Attention
from runtime.layers.device_lora import DeviceLora, Product
from runtime.layers.device_step import DeviceStep
from runtime.layers.rotary import Rotations
from runtime.models.decoder import Decoder, DecoderLayer
from runtime.queues import Queues

Turns = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(cos, sin) of the step's positions, by rotary table."""


class DeviceDecoder:
    """One model. It keeps nothing of a step."""

    def __init__(self, decoder: Decoder, pool: AdapterPool, rotations: Rotations, queues: Queues) -> None:
        self._decoder, self._rotations, self._lora = decoder, rotations, DeviceLora(pool, queues)
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
        self._lora.begin(step, hidden.shape[0])
        x = rms_norm(hidden, layers[0].attention_norm, eps)
        for index, layer in enumerate(layers):
            attended = self._attended(x, layer, step, turns)
            x = rms_norm(attended.base, layer.mlp_norm, eps, hidden, attended.delta)
            last = self._mlp(x, layer, step)
            if index + 1 < len(layers):
                x = rms_norm(last.base, layers[index + 1].attention_norm, eps, hidden, last.delta)
        if step.sampled is not None:
            last = Product(last.joined().index_select(0, step.sampled))
            hidden = hidden.index_select(0, step.sampled)
        x = rms_norm(last.base, decoder.norm, eps, hidden, last.delta)
        logits = torch.mm(x, decoder.head.T) if out is None else torch.mm(x, decoder.head.T, out=out)
        cap = decoder.config.logits_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _attended(self, x: torch.Tensor, layer: DecoderLayer, step: DeviceStep, turns: Turns) -> Product:
        attention: Attention = layer.attention
        qkv = self._lora.product(attention.qkv, x, step)
        if attention.qk_norm is not None:
            qkv = Product(qkv.joined())
            head_norm_(qkv.base, attention.qk_norm, attention.norm_eps)
        cos, sin = turns[self._rotations.of_kind[attention.kind]]
        q = rope_write_kv(qkv.base, cos, sin, attention.cache, step.places, attention.num_heads, qkv.delta)
        window = self._windows[attention.kind]
        attended = device_attention(q, attention.cache, step.attention, window, attention.scale, attention.softcap)
        out = self._lora.product(attention.o, attended.view(x.shape[0], -1), step)
        return self._normed(out, layer.attention_out_norm)

    def _mlp(self, x: torch.Tensor, layer: DecoderLayer, step: DeviceStep) -> Product:
        gate_up = self._lora.product(layer.mlp.gate_up, x, step)
        gated = gated_activation(gate_up.base, layer.mlp.activation, gate_up.delta)
        return self._normed(self._lora.product(layer.mlp.down, gated, step), layer.mlp_out_norm)

    def _normed(self, out: Product, weight: torch.Tensor | None) -> Product:
        eps = self._decoder.config.norm_eps
        return out if weight is None else Product(rms_norm(out.base, weight, eps, delta=out.delta))
