"""A decoder as a program for the CPU's kernels: the same layers as `decoder.py`, every operation over all tokens.

    embed, per layer [qkv, heads, attention, o, finish, gate_up, gate, down, finish], gather, head, [cap], choose

Numbers between operations are fp32 whatever the weights are, so narrow weights lose nothing that they had: those of the
base may be narrower than cache and adapters (`ModelSize.held_as`). What the program reads and writes is addressed once,
when it is made: weights, cache, pool and a workspace for PASS_TOKENS tokens. This object keeps all of it alive.
"""

from functools import partial
from typing import Final

import numpy as np
import torch

from kernels.cpu import records as c
from kernels.cpu.attention import scratch_bytes, tile_tokens, weaves
from kernels.cpu.compiling import kind_of
from kernels.cpu.executing import execute, prepare
from kernels.cpu.operations import project_scratch_bytes
from kernels.cpu.team import Team
from kernels.cpu.vectors import KINDS, LANES
from runtime.batch import Row
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.cpu_step import PASS_TOKENS, Pass, PassBuilder
from runtime.layers.kv_cache import KVCache
from runtime.layers.linear import LoraLinear
from runtime.layers.rotary import Rotations
from runtime.models.decoder import Decoder, DecoderLayer
from runtime.sampler import Logits

_LINE: Final = 64  # bytes: a cache line, and a vector of AVX-512

Columns = dict[int, int]
Operation = tuple[Columns, dict[int, float]]


class CpuProgram:
    """One model on a team of threads. Not thread-safe: the engine thread runs it, and somebody closes it."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        pool: AdapterPool,
        rotations: Rotations,
        max_positions: int,
        threads: int,
    ) -> None:
        self._decoder, self._cache, self._pool, self._rotations = decoder, cache, pool, rotations
        geometry = decoder.config.geometry
        heads = geometry.num_heads, geometry.num_kv_heads
        self._hidden, self._normed, self._out = (_Rows(PASS_TOKENS, geometry.hidden_size) for _ in range(3))
        self._qkv = _Rows(PASS_TOKENS, (heads[0] + 2 * heads[1]) * geometry.head_dim)
        self._attended = _Rows(PASS_TOKENS, heads[0] * geometry.head_dim)
        self._gate_up = _Rows(PASS_TOKENS, 2 * geometry.intermediate_size)
        self._shrunk = _Rows(3 * PASS_TOKENS, pool.num_rows)
        widest = max(geometry.hidden_size, heads[0] * geometry.head_dim, geometry.intermediate_size)
        self._packed = _Rows(-(-PASS_TOKENS // LANES) * LANES, -(-widest // LANES) * LANES)
        scratch = scratch_bytes(*heads, geometry.head_dim, max_positions)
        scratch = max(scratch, project_scratch_bytes(widest), pool.num_rows * 4)
        self._scratch = _Rows(threads, -(-scratch // 4))
        self._kept: list[torch.Tensor] = []
        self._program = c.program(self._operations())
        kind = kind_of(*(str(dtype).removeprefix("torch.") for dtype in (decoder.head.dtype, pool.dtype)))
        self._markers = KINDS[kind]
        prepare(kind)
        self._passes = PassBuilder(pool, cache.block_tokens, partial(tile_tokens, *heads))
        self._team = Team(threads)

    def forward(self, rows: tuple[Row, ...]) -> Logits:
        """In fp32; writes the step's keys and values. Rows have been checked.

        Raises RunnerMisused for a slot that is not READY.
        """
        sampled = sum(row.samples for row in rows)
        logits = torch.empty((sampled, self._decoder.config.vocab_size), dtype=torch.float32)
        best: list[int] = []
        for one in self._passes.build(rows):
            self._run(one, logits.data_ptr() + len(best) * logits.stride(0) * 4)
            best += one.step.best.tolist()
        return Logits(logits, best)

    def close(self) -> None:
        """Ends the team."""
        self._team.close()

    def _run(self, one: Pass, logits: int) -> None:
        team, scratch = self._team, self._scratch
        control = team.control.ctypes.data

        def run(thread: int) -> None:
            execute(
                *self._markers,
                self._program,
                one.step,
                control,
                thread,
                team.size,
                scratch.address,
                scratch.stride,
                logits,
            )

        team.run(run)

    # The operations.

    def _operations(self) -> list[Operation]:
        decoder, config = self._decoder, self._decoder.config
        layers, size = decoder.layers, config.geometry.hidden_size
        embed = {
            c.KIND: c.EMBED,
            **_out_of(self._hidden, size),
            c.WEIGHT: decoder.embedding.data_ptr(),
            **self._norm_into(self._normed, layers[0].attention_norm),
        }
        scale = decoder.embedding_scale
        operations: list[Operation] = [
            (embed, {c.EPS: config.norm_eps, c.SCALE: 1.0 if scale is None else float(scale)})
        ]
        for index, layer in enumerate(layers):
            following = layers[index + 1].attention_norm if index + 1 < len(layers) else None
            operations += self._layer(index, layer, following)
        gather = {**_into(self._hidden), c.OUTPUTS: size, **self._norm_into(self._normed, decoder.norm)}
        head = {c.WEIGHT: decoder.head.data_ptr(), c.INPUTS: size, c.OUTPUTS: config.vocab_size, c.SAMPLED: 1}
        head[c.PACKED] = self._packed.address
        logits = {c.Y_STRIDE: config.vocab_size * 4, c.OUTPUTS: config.vocab_size}
        operations += [
            ({c.KIND: c.GATHER, **gather}, {c.EPS: config.norm_eps}),
            ({c.KIND: c.PROJECT, **_into(self._normed), **head, **logits}, {}),
        ]
        if config.logits_softcap is not None:
            operations.append(({c.KIND: c.CAP, **logits}, {c.SOFT_CAP: config.logits_softcap}))
        return [*operations, ({c.KIND: c.CHOOSE, **logits}, {})]

    def _layer(self, index: int, layer: DecoderLayer, following: torch.Tensor | None) -> list[Operation]:
        """`following`: the norm of the next layer's input; None for the last one."""
        attention, mlp, config = layer.attention, layer.mlp, self._decoder.config
        geometry, eps = config.geometry, {c.EPS: config.norm_eps}
        cos, sin = self._rotations.table(attention.kind)
        heads = {
            c.NUM_HEADS: geometry.num_heads,
            c.KV_HEADS: geometry.num_kv_heads,
            c.HEAD_DIM: geometry.head_dim,
            c.BLOCK_TOKENS: self._cache.block_tokens,
            c.WINDOW: config.kinds[attention.kind].window or 0,
            c.COS: cos.data_ptr(),
            c.SIN: sin.data_ptr(),
            c.CACHE: attention.cache.data_ptr(),
        }
        qk_norm = {} if attention.qk_norm is None else {c.NORM: self._floats(attention.qk_norm)}
        scores = {c.SCALE: attention.scale or geometry.head_dim**-0.5, c.SOFT_CAP: attention.softcap or 0.0}
        width = geometry.intermediate_size
        gated = {c.OUTPUTS: width, c.GELU: int(mlp.activation == "gelu_tanh")}

        def finish(linear: LoraLinear, out_norm: torch.Tensor | None, norm: torch.Tensor | None) -> Operation:
            columns = {c.KIND: c.FINISH, **_into(self._hidden), **_out_of(self._out, linear.weight.shape[0])}
            if out_norm is not None:
                columns[c.OUT_NORM] = self._floats(out_norm)
            if norm is not None:
                columns |= self._norm_into(self._normed, norm)
            return {**columns, **self._adapters(linear)}, eps

        weave: list[Operation] = []
        if not weaves(geometry.num_heads, geometry.num_kv_heads, geometry.head_dim):
            attended = _out_of(self._attended, geometry.num_heads * geometry.head_dim)
            weave.append(({c.KIND: c.WEAVE, **attended}, {}))
        return [
            self._project(attention.qkv, self._normed, self._qkv),
            ({c.KIND: c.HEADS, **_out_of(self._qkv, 0), **heads, **qk_norm, **self._adapters(attention.qkv)}, eps),
            ({c.KIND: c.ATTEND, **_into(self._qkv), **_out_of(self._attended, 0), **heads}, scores),
            *weave,
            self._project(attention.o, self._attended, self._out),
            finish(attention.o, layer.attention_out_norm, layer.mlp_norm),
            self._project(mlp.gate_up, self._normed, self._gate_up),
            ({c.KIND: c.GATE, **_out_of(self._gate_up, 0), **self._adapters(mlp.gate_up), **gated}, {}),
            self._project(mlp.down, self._gate_up, self._out),
            finish(mlp.down, layer.mlp_out_norm, following),
        ]

    def _project(self, linear: LoraLinear, x: "_Rows", y: "_Rows") -> Operation:
        outputs, inputs = linear.weight.shape
        weight = {c.WEIGHT: linear.weight.data_ptr(), c.INPUTS: inputs, c.PACKED: self._packed.address}
        return {c.KIND: c.PROJECT, **_into(x), **_out_of(y, outputs), **weight, **self._adapters(linear)}, {}

    def _adapters(self, linear: LoraLinear) -> Columns:
        """Bias and the group's part of the pool."""
        weights = self._pool.weights(linear.layer, linear.group)
        touched = self._pool.touched(linear.layer, linear.group)
        widths = self._pool.groups[linear.group].slices
        return {
            c.BIAS: 0 if linear.bias is None else self._floats(linear.bias),
            c.A: weights.a.data_ptr(),
            c.A_SLICE: weights.a.stride(0) * weights.a.element_size(),
            c.B: weights.b.data_ptr(),
            c.SCALING: weights.scaling.data_ptr(),
            c.SCALING_STRIDE: weights.scaling.stride(0) * 4,
            c.TOUCHED: touched.ctypes.data,
            c.TOUCHED_STRIDE: touched.strides[0],
            c.SLICES: len(widths),
            **{c.SLICE_WIDTH + part: width for part, width in enumerate(widths)},
            c.SHRUNK: self._shrunk.address,
            c.SHRUNK_STRIDE: self._shrunk.stride,
            c.SHRUNK_SLICE: self._shrunk.stride * PASS_TOKENS,
        }

    def _norm_into(self, rows: "_Rows", weight: torch.Tensor) -> Columns:
        return {c.NORM: self._floats(weight), c.NORMED: rows.address, c.NORMED_STRIDE: rows.stride}

    def _floats(self, weight: torch.Tensor) -> int:
        """The address of a small weight in fp32."""
        self._kept.append(weight.float().contiguous())
        return self._kept[-1].data_ptr()


class _Rows:
    """A matrix of fp32 whose rows begin at cache lines; stride in bytes."""

    def __init__(self, rows: int, columns: int) -> None:
        self.stride = -(-columns * 4 // _LINE) * _LINE
        self._bytes = np.zeros(rows * self.stride + _LINE, np.uint8)
        self.address = -(-self._bytes.ctypes.data // _LINE) * _LINE


def _into(rows: _Rows) -> Columns:
    return {c.X: rows.address, c.X_STRIDE: rows.stride}


def _out_of(rows: _Rows, outputs: int) -> Columns:
    return {c.Y: rows.address, c.Y_STRIDE: rows.stride, c.OUTPUTS: outputs}
