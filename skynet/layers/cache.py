"""The KV cache of one layer: a slot for each sequence, memory taken only where tokens were put."""

from __future__ import annotations

import numpy as np
import torch


def allocate(
    slots: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Zeros of (slots, heads, tokens, head_dim); `heads` counts the K heads, then the V heads.

    Zeros and not garbage: keys past a sequence's end may be read under a mask, and a NaN among
    them would pass any mask. On a CPU the pages come from calloc, so that those never written
    take no memory; `torch.zeros` would write them all.
    """
    shape = (slots, heads, tokens, head_dim)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = np.zeros(slots * heads * tokens * head_dim * size, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)
