"""Mamba-2 of one shard's heads; the result is a partial."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
import torch.nn.functional as F

from skynet.architecture.mixers import Mamba2
from skynet.kernels.divided_norm import emit_divided_norm, emit_gate
from skynet.kernels.recurrent import MambaHeads, emit_mamba
from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.activation import ACTIVATIONS
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.convolution import CausalConvolution
from skynet.layers.gated_norm import GatedGroupNorm
from skynet.layers.norm import AllReduce
from skynet.layers.recurrent import RecurrentState
from skynet.layers.slot_state import SlotState
from skynet.layers.state_space import Scanned, StateSpace
from skynet.layers.weights import Loader
from skynet.planning.units import items_of
from skynet.wire.step import Row

IN = ("mamba_z", "mamba_x", "mamba_b", "mamba_c", "mamba_dt")
CONVOLUTION = ("mamba_conv_x", "mamba_conv_b", "mamba_conv_c")


class Mamba2Mixer:
    """A gate, a convolution, the recurrence of some heads, a norm, and the output product.

    Some shards may have heads of one group: each computes the group's B and C. A shard without
    heads takes part in the sums only.
    """

    windows: tuple[int | None, ...] = ()

    def __init__(self, load: Loader, kv: KVLayout, layer: int, mixer: Mamba2) -> None:
        heads, groups = (items_of(load.arch, load.part, f"mamba_{u}") for u in ("heads", "groups"))
        self._mixer, self._heads, self._groups = mixer, heads.size, groups.size
        self._dtype, self._all_groups = load.dtype, load.arch.dims["mamba_groups"].count
        self.nbytes, self.states = 0, tuple[SlotState, ...]()
        if not heads.size:
            return
        in_group = load.arch.dims["mamba_heads"].count // self._all_groups
        group_of = [head // in_group for head in range(heads.start, heads.stop)]
        self._load_products(load, layer)
        decay = -load.float32.cut("mamba_a", layer).exp()
        local = torch.tensor([g - groups.start for g in group_of], device=load.device)
        self._space = StateSpace(decay, local)
        self._step_bias = load.float32.cut("mamba_dt_bias", layer)
        self._skip = load.float32.cut("mamba_d", layer)[:, None]
        self._norm: GatedGroupNorm | None = None
        if mixer.norm is not None:
            weight = load.float32.cut("mamba_norm", layer).view(heads.size, -1)
            every = (self._all_groups, in_group)
            self._norm = GatedGroupNorm(weight, group_of, every, load.arch.norm_eps)
        self._state = RecurrentState(
            kv, mixer.kept(load.count, load.arch.head_dim).state, load.device
        )
        self.states = (self._state,)
        # Of the slots of the kernels' step, whether the token is one of the prompt.
        self._in_prompt = torch.zeros(kv.num_slots, dtype=torch.int64)
        self._in_prompt_numbers = self._in_prompt.numpy()  # the same memory
        parts = (self._in, self._conv, decay, self._step_bias, self._skip, self._norm, self._out)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def _load_products(self, load: Loader, layer: int) -> None:
        self._in = load.linear(*IN, layer=layer)
        bias = None
        if load.has_bias(CONVOLUTION[0]):
            bias = torch.cat([load.float32.cut(role, layer, "bias") for role in CONVOLUTION])
        weight = torch.cat([load.float32.cut(role, layer).flatten(1) for role in CONVOLUTION])
        self._conv = CausalConvolution(weight, bias)
        self._activation = ACTIVATIONS[self._mixer.activation]
        self._out = load.linear("mamba_out", layer=layer, bias=False)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        if not self._heads:
            for _ in range(self._mixer.sums):
                all_reduce(x.new_zeros(len(x), self._all_groups, dtype=torch.float32))
            return torch.zeros_like(x)
        rows, heads, groups = context.step.rows, self._heads, self._groups
        width, state = heads * self._mixer.head_size, groups * self._mixer.state_size
        projected = self._in(x).float()
        gate, mixed, steps = projected.split([width, width + 2 * state, heads], dim=-1)
        window, states = self._state.read(rows)
        mixed, window = self._conv(mixed, rows, window)
        values, b, c = self._activation(mixed).split([width, state, state], dim=-1)
        tokens = Scanned(
            values.unflatten(-1, (heads, -1)),
            self._steps(steps, rows),
            b.unflatten(-1, (groups, -1)),
            c.unflatten(-1, (groups, -1)),
        )
        y, states = self._scan(tokens, rows, states)
        self._state.write(rows, [window, states])
        y = torch.addcmul(y, tokens.values, self._skip)
        y = self._gated(y, gate.unflatten(-1, (heads, -1)), all_reduce)
        return self._out(y.flatten(1).to(self._dtype))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        if not self._heads or not self._in.emit(program, (source, WIDE)):
            return False
        windows, matrices = self._state.for_kernels(program)
        program.before(self._mark_prompts)
        heads = MambaHeads(
            self._conv.for_kernels(windows),
            matrices,
            self._space.decay,
            self._step_bias,
            self._skip,
            self._space.group_of,
            self._groups,
            self._in_prompt,
            self._mixer.step_limits,
            self._mixer.activation,
        )
        return (
            emit_mamba(program, heads, (WIDE, MIXED))
            and self._emit_gated(program)
            and self._out.emit(program, (MIXED, target))
        )

    def _emit_gated(self, program: Program) -> bool:
        width, groups = self._heads * self._mixer.head_size, self._groups
        columns = 2 * width + 2 * groups * self._mixer.state_size + self._heads
        if self._norm is None:
            return emit_gate(program, width, columns, (WIDE, MIXED))
        norm = self._norm.for_kernels()
        if self._mixer.norm == "after_gate":
            return emit_gate(program, width, columns, (WIDE, MIXED)) and emit_divided_norm(
                program, norm, MIXED, width
            )
        return emit_divided_norm(program, norm, MIXED, width) and emit_gate(
            program, width, columns, (WIDE, MIXED)
        )

    def _mark_prompts(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._in_prompt_numbers[row.slot] = row.start < row.prompt_length

    def _steps(self, steps: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """The time steps, (tokens, heads).

        Those of a prompt are limited and those of an answer are not, as in Transformers.
        """
        steps, limits = F.softplus(steps + self._step_bias), self._mixer.step_limits
        if limits == (0.0, inf):
            return steps
        in_prompt = [at < row.prompt_length for row in rows for at in range(row.start, row.stop)]
        limited = torch.tensor(in_prompt, device=steps.device)[:, None]
        return torch.where(limited, steps.clamp(*limits), steps)

    def _scan(
        self, tokens: Scanned, rows: Sequence[Row], states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The recurrence of all rows, and the states after them; single tokens in one call."""
        if len(tokens.values) == len(rows):
            return self._space.step(tokens, states)
        output, start = torch.empty_like(tokens.values), 0
        singles: tuple[list[int], list[int]] = ([], [])
        for index, row in enumerate(rows):
            count = len(row.tokens)
            if count == 1:
                singles[0].append(index)
                singles[1].append(start)
            else:
                part = slice(start, start + count)
                output[part], states[index] = self._space.scan(tokens.at(part), states[index])
            start += count
        if singles[0]:
            at = torch.tensor(singles[1], device=output.device)
            output[at], states[singles[0]] = self._space.step(tokens.at(at), states[singles[0]])
        return output, states

    def _gated(self, y: torch.Tensor, gate: torch.Tensor, all_reduce: AllReduce) -> torch.Tensor:
        if self._norm is None:
            return y.mul_(F.silu(gate))
        return self._norm(y, gate, self._mixer.norm == "after_gate", all_reduce)
