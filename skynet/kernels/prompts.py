"""Attention of a chunk of a prompt, float32, by the kernel of prompts.c."""

from __future__ import annotations

from typing import NamedTuple

import torch

from skynet.kernels.library import Library

# The kernel turns each block of keys around, which pays with so many tokens that share it.
MIN_TOKENS = 8
# Query heads of a KV head times their size: the kernel has some tokens of all of them on its stack.
MAX_GROUP = 8192


class Sight(NamedTuple):
    """Which keys a token sees.

    first: the last key that the first token sees; each further token sees one more.
    window: how many keys each sees; 0: all up to its last.
    """

    first: int
    window: int


def can_attend(queries: torch.Tensor, keys: torch.Tensor, group: int) -> bool:
    """queries: (tokens, heads, head_dim). keys: (kv_heads, keys, head_dim), as values are.

    group: query heads of a KV head, at most.
    """
    dim = queries.shape[2]
    return (
        len(queries) >= MIN_TOKENS
        and queries.is_cpu
        and queries.dtype == keys.dtype == torch.float32
        and group * dim <= MAX_GROUP
        and queries.stride()[1:] == keys.stride()[1:] == (dim, 1)
    )


def attend_prompt(
    library: Library,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sight: Sight,
    scale: float,
) -> torch.Tensor:
    """To (tokens, heads, head_dim). Shapes as in `can_attend`; each KV head has as many heads."""
    tokens, heads, dim = queries.shape
    out = torch.empty(tokens, heads, dim)
    library.attend_prompt(
        queries.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
        tokens,
        heads,
        keys.shape[0],
        dim,
        queries.stride(0),
        keys.stride(0),
        sight.first,
        sight.window,
        scale,
        torch.get_num_threads(),
    )
    return out
