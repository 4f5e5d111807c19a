"""Short convolutions over the tokens of each sequence, and the mixer that is made of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from skynet.architecture.mixers import ShortConvolution
from skynet.kernels.recurrent import Convolution, States, emit_convolution
from skynet.kernels.steps import MIXED, WIDE, Program
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce
from skynet.layers.recurrent import RecurrentState
from skynet.layers.slot_state import SlotState
from skynet.layers.weights import Loader
from skynet.wire.step import Row


class CausalConvolution:
    """A convolution of each channel over its last tokens.

    Its state is the window: the inputs of the last tokens but one, the oldest first.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: (channels, kernel) float32; bias: (channels,)."""
        self._weight, self._bias = weight, bias
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(
        self, x: torch.Tensor, rows: Sequence[Row], window: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolved `x` and the windows after the rows.

        x: (tokens, channels) float32, of all rows.
        window: (rows, channels, kernel - 1).
        """
        if len(x) == len(rows):  # a token each
            seen = torch.cat([window, x[:, :, None]], dim=-1)
            out = (seen * self._weight).sum(-1)
            return out if self._bias is None else out.add_(self._bias), seen[:, :, 1:]
        outputs, windows = [], []
        channels, width = self._weight.shape
        for index, new in enumerate(x.split([len(row.tokens) for row in rows])):
            seen = torch.cat([window[index], new.t()], dim=-1)
            out = F.conv1d(seen[None], self._weight[:, None], self._bias, groups=channels)
            outputs.append(out[0].t())
            windows.append(seen[:, seen.shape[-1] - width + 1 :])
        return torch.cat(outputs), torch.stack(windows)

    def for_kernels(self, windows: States) -> Convolution:
        """The same for a program."""
        return Convolution(windows, self._weight, self._bias)


class ShortConvolutionMixer:
    """A gated convolution (LFM2, Liquid AI, 2025): C * conv(B * x), in the shard's channels."""

    windows: tuple[int | None, ...] = ()

    def __init__(self, load: Loader, kv: KVLayout, layer: int, mixer: ShortConvolution) -> None:
        kept = mixer.kept(load.count, load.arch.head_dim)
        state = RecurrentState(kv, kept.state, load.device)
        self._state, self._dtype = state, load.dtype
        self.states: tuple[SlotState, ...] = (state,)
        self._in = load.linear("conv_b", "conv_c", "conv_x", layer=layer)
        bias = load.float32.cut("conv", layer, "bias") if load.has_bias("conv") else None
        self._conv = CausalConvolution(load.float32.cut("conv", layer).flatten(1), bias)
        self._out = load.linear("conv_o", layer=layer, bias=False)
        self.nbytes = sum(part.nbytes for part in (self._in, self._conv, self._out))

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        rows = context.step.rows
        before, after, inputs = self._in(x).float().chunk(3, dim=-1)
        (window,) = self._state.read(rows)
        mixed, window = self._conv(before * inputs, rows, window)
        self._state.write(rows, [window])
        return self._out((after * mixed).to(self._dtype))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        if not self._in.emit(program, (source, WIDE)):
            return False
        (windows,) = self._state.for_kernels(program)
        convolution = self._conv.for_kernels(windows)
        return emit_convolution(program, convolution, (WIDE, MIXED)) and self._out.emit(
            program, (MIXED, target)
        )
