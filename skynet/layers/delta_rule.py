"""The gated delta rule (Yang et al., 2024, arXiv:2412.06464): token by token, and in chunks.

The state S of a head is a matrix (key_dim, value_dim) that maps keys to values. At each token it
decays, then the value of the token's key k moves towards v: S += k (beta (v - S^T k))^T. The output
is S^T q.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from skynet.wire.step import Row

CHUNK = 64  # tokens whose updates are one triangular system


class DeltaTokens(NamedTuple):
    """What the rule takes of tokens, of all their heads.

    q, k: (tokens, heads, key_dim). v: (tokens, heads, value_dim). log_decay, beta: (tokens, heads).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log_decay: torch.Tensor
    beta: torch.Tensor

    def at(self, tokens: Any) -> DeltaTokens:
        """Those of some tokens."""
        return DeltaTokens._make(each[tokens] for each in self)


def delta_rule(
    tokens: DeltaTokens, rows: Sequence[Row], state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows' outputs (tokens, heads, value_dim) and next states.

    Rows of one token are one step, others are computed in chunks.

    state: (rows, heads, key_dim, value_dim), may be changed.
    """
    counts = [len(row.tokens) for row in rows]
    if len(tokens.v) == len(rows):
        return delta_steps(tokens, state), state
    out, starts = torch.empty_like(tokens.v), [0, *accumulate(counts)]
    single = [index for index, count in enumerate(counts) if count == 1]
    if single:
        at, states = [starts[index] for index in single], state[single]
        out[at] = delta_steps(tokens.at(at), states)
        state[single] = states
    for index, count in enumerate(counts):
        if count > 1:
            part = slice(starts[index], starts[index] + count)
            out[part], state[index] = delta_chunks(tokens.at(part), state[index])
    return out, state


def delta_steps(tokens: DeltaTokens, state: torch.Tensor) -> torch.Tensor:
    """The outputs (rows, heads, value_dim) of one token of each row.

    state: (rows, heads, key_dim, value_dim), changed in place.
    """
    q, k, v, log_decay, beta = tokens
    state.mul_(log_decay.exp()[..., None, None])
    k_read, q_read = (torch.stack([k, q], dim=-2) @ state).unbind(-2)
    change = (v - k_read).mul_(beta[..., None])
    state.addcmul_(k[..., None], change[..., None, :])
    return q_read + (q * k).sum(-1, keepdim=True) * change


def delta_chunks(tokens: DeltaTokens, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs (tokens, heads, value_dim) of many tokens of one row, and the state after them.

    state: (heads, key_dim, value_dim).

    Within a chunk each token's change of the state depends on the changes before it: a triangular
    system, solved for all tokens at once (section 3.3, the UT transform).
    """
    count, size = len(tokens.q), min(CHUNK, len(tokens.q))
    q, k, v = (_chunks(each, size) for each in tokens[:3])
    beta, log_decay = (_chunks(each[..., None], size) for each in (tokens.beta, tokens.log_decay))
    since = log_decay.cumsum(dim=-2)  # (heads, chunks, size, 1): from the start of the chunk
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu_(1)
    between = (since - since.transpose(-1, -2)).masked_fill_(later, float("-inf")).exp_()
    system = (k * beta) @ k.transpose(-1, -2) * between
    known = torch.cat([v, k * since.exp()], dim=-1) * beta
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    values, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = q @ k.transpose(-1, -2) * between
    q = q * since.exp()
    k = k * (since[..., -1:, :] - since).exp()
    decay = since[..., -1:, :].exp()
    outputs = []
    for at in range(q.shape[1]):
        change = values[:, at] - reads[:, at] @ state
        outputs.append(q[:, at] @ state + scores[:, at] @ change)
        state = state * decay[:, at] + k[:, at].transpose(-1, -2) @ change
    return torch.cat(outputs, dim=1)[:, :count].transpose(0, 1), state


def _chunks(x: torch.Tensor, size: int) -> torch.Tensor:
    """(tokens, heads, dim) to (heads, chunks, size, dim), filled up with zeros.

    With zeros in place of keys, values and the logarithm of the decay, a token changes no state.
    """
    x = F.pad(x.transpose(0, 1), (0, 0, 0, -len(x) % size))
    return x.unflatten(1, (-1, size))
