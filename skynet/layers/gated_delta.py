"""Gated delta nets: a mixer whose state is a matrix for each head, cut by value heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from skynet.architecture.mixers import GatedDelta
from skynet.kernels.recurrent import Convolution, DeltaNet, States, emit_delta
from skynet.kernels.steps import MIXED, WIDE, NormWeights, Program
from skynet.layers.activation import ACTIVATIONS
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.convolution import CausalConvolution
from skynet.layers.delta_rule import DeltaTokens, delta_rule
from skynet.layers.norm import AllReduce, RMSNorm
from skynet.layers.recurrent import RecurrentState
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader
from skynet.planning.units import items_of
from skynet.wire.step import Row

CHANNELS = ("delta_q", "delta_k", "delta_v")
CONVOLUTIONS = ("conv_q", "conv_k", "conv_v")
GATES = ("delta_beta", "delta_decay")
EPS = 1e-6  # beside the squares of a query's or key's length


class GatedDeltaMixer:
    """Projections, a convolution, the delta rule, and the output's norm and gate."""

    windows: tuple[int | None, ...] = ()

    def __init__(self, load: Loader, kv: KVLayout, layer: int, mixer: GatedDelta) -> None:
        self._heads, self._dtype = DeltaHeads(load, layer, mixer), load.dtype
        self._norm = RMSNorm(
            load.float32.vector("delta_norm", layer=layer), mixer.norm_eps, torch.float32
        )
        self._in = load.linear(*CHANNELS, "delta_z", layer=layer)
        self._out = load.linear("delta_o", layer=layer, bias=False)
        self._activation_name = load.arch.activation
        self._activation = ACTIVATIONS[self._activation_name]
        parts = (self._heads, self._norm, self._in, self._out)
        self.nbytes = sum(part.nbytes for part in parts)
        # A shard may have no heads.
        self._conv: CausalConvolution | None = None
        self.states: tuple[SlotState, ...] = ()
        if self._heads.count:
            kernels = [load.float32.cut(role, layer).flatten(1) for role in CONVOLUTIONS]
            self._conv = CausalConvolution(torch.cat(kernels), None)
            kept = mixer.kept(load.count, load.arch.head_dim)
            self._state = RecurrentState(kv, kept.state, load.device)
            self.states = (self._state,)
            self.nbytes += self._conv.nbytes

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        if self._conv is None:
            return torch.zeros_like(x)
        rows, heads = context.step.rows, self._heads
        projected = self._in(x).float()
        channels, gate = projected.split([sum(heads.channels), heads.channels[2]], dim=-1)
        window, state = self._state.read(rows)
        mixed, window = self._conv(channels, rows, window)
        out, state = heads(self._activation(mixed), x, rows, state)
        self._state.write(rows, [window, state])
        out = self._norm(out).flatten(1).mul_(F.silu(gate))
        return self._out(out.to(self._dtype))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        norm = self._norm.weights
        if self._conv is None or norm is None or not self._in.emit(program, (source, WIDE)):
            return False
        windows, matrices = self._state.for_kernels(program)
        convolution = self._conv.for_kernels(windows)
        net = self._heads.for_kernels(convolution, matrices, norm, self._activation_name)
        return emit_delta(program, net, source, (WIDE, MIXED)) and self._out.emit(
            program, (MIXED, target)
        )


class DeltaHeads:
    """The delta rule of a shard's value heads.

    channels: how many numbers a token has in all queries, keys and values.
    """

    def __init__(self, load: Loader, layer: int, mixer: GatedDelta) -> None:
        arch = load.arch
        values, keys = (items_of(arch, load.part, unit) for unit in ("value_heads", "key_heads"))
        self.count, self._mixer = values.size, mixer
        self.channels = [keys.size * mixer.key_dim] * 2 + [values.size * mixer.value_dim]
        self.nbytes = 0
        if not self.count:
            return
        group = arch.dims["value_heads"].count // arch.dims["key_heads"].count
        # A shard may have a part of the value heads that a key head serves.
        numbers = [head // group - keys.start for head in range(values.start, values.stop)]
        self._key_heads = torch.tensor(numbers, device=load.device)
        self._beta, self._decay = (load.float32.cut(role, layer) for role in GATES)
        self._rate = load.float32.cut("delta_rate", layer).exp()
        self._time_bias = load.float32.cut("delta_time_bias", layer)
        parts = (self._beta, self._decay, self._rate, self._time_bias)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, mixed: torch.Tensor, x: torch.Tensor, rows: Sequence[Row], state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs (tokens, heads, value_dim), and the states after the rows.

        mixed: queries, keys and values of all heads (tokens, channels) after the convolution.
        x: what beta and decay depend on, (tokens, hidden).
        state: (rows, heads, key_dim, value_dim), may be changed.
        """
        q, k, v = mixed.split(self.channels, dim=-1)
        q, k = (self._normed(each) for each in (q, k))
        q = q * self._mixer.key_dim**-0.5
        v = v.unflatten(-1, (-1, self._mixer.value_dim))
        x = x.float()
        beta = F.linear(x, self._beta).sigmoid_().mul_(self._mixer.beta_scale)
        log_decay = -self._rate * F.softplus(F.linear(x, self._decay) + self._time_bias)
        return delta_rule(DeltaTokens(q, k, v, log_decay, beta), rows, state)

    def for_kernels(
        self, convolution: Convolution, matrices: States, norm: NormWeights, activation: str
    ) -> DeltaNet:
        """The same for a program, with what is before and after the heads."""
        key_dim = self._mixer.key_dim
        return DeltaNet(
            convolution,
            matrices,
            *(self._beta, self._decay, self._rate, self._time_bias),
            norm.weight,
            self._key_heads,
            self.channels[1] // key_dim,
            activation,
            self._mixer.beta_scale,
            EPS,
            norm.eps,
        )

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys of length 1, (tokens, value heads, key_dim): those that serve each."""
        x = x.unflatten(-1, (-1, self._mixer.key_dim))
        x = x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt_()
        return x[:, self._key_heads]
