"""The recurrence of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060), in two forms that agree.

For each head and token t, with the state S (channels, state):
S_t = exp(dt_t a) S_(t-1) + dt_t x_t B_t^T, and y_t = S_t C_t.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

CHUNK = 64  # tokens whose products with each other are one matrix


class Scanned(NamedTuple):
    """What the recurrence takes of tokens, in float32; groups (B and C) serve several heads.

    values (tokens, heads, channels), steps (tokens, heads), b and c (tokens, groups, state).
    """

    values: torch.Tensor
    steps: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor

    def at(self, tokens: slice | torch.Tensor) -> Scanned:
        return Scanned(*(each[tokens] for each in self))


class StateSpace:
    """The recurrence of some heads."""

    def __init__(self, decay: torch.Tensor, group_of: torch.Tensor) -> None:
        """decay: (heads,) negative, `a`; group_of: (heads,) index of each head's B and C."""
        self.decay, self.group_of = decay, group_of

    def step(self, tokens: Scanned, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each of several sequences; `states` (tokens, heads, channels, state) are
        changed to those after it.
        """
        b, c = tokens.b[:, self.group_of], tokens.c[:, self.group_of]
        states.mul_((tokens.steps * self.decay).exp_()[:, :, None, None])
        scaled = tokens.values * tokens.steps[:, :, None]
        states.addcmul_(scaled[:, :, :, None], b[:, :, None, :])
        return (states @ c[..., None]).squeeze(-1), states

    def scan(self, tokens: Scanned, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Many tokens of one sequence; `state` (heads, channels, state) before them.

        Within a chunk tokens attend to each other, between chunks the state carries.
        """
        outputs = []
        for start in range(0, len(tokens.values), CHUNK):
            output, state = self._chunk(tokens.at(slice(start, start + CHUNK)), state)
            outputs.append(output)
        return torch.cat(outputs), state

    def _chunk(self, tokens: Scanned, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Differences of sums over many tokens would lose small decays in float32.
        total = (tokens.steps * self.decay).double().cumsum(0).t()  # (heads, tokens)
        between = (total[:, :, None] - total[:, None, :]).float().exp_().tril_()
        b, c = tokens.b.transpose(0, 1), tokens.c.transpose(0, 1)  # (groups, tokens, state)
        scores = (c @ b.transpose(1, 2))[self.group_of].mul_(between)
        b, c = b[self.group_of], c[self.group_of]
        scaled = (tokens.values * tokens.steps[:, :, None]).transpose(0, 1)
        from_state = (c @ state.transpose(1, 2)).mul_(total.exp().float()[:, :, None])
        output = (scores @ scaled).add_(from_state).transpose(0, 1)
        last = total[:, -1:]
        scaled = scaled * (last - total).exp().float()[:, :, None]
        state = torch.baddbmm(state * last.exp().float()[:, :, None], scaled.transpose(1, 2), b)
        return output, state
