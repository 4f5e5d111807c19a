"""The latents of one layer, and the rotated keys beside them: a slot for each sequence."""

from __future__ import annotations

import torch

from skynet.layers.cache import Q8, KVLayout, coded, zeros
from skynet.layers.context import StepContext
from skynet.planning.ranges import Range


class LatentCache:
    """Of each token a latent, then a rotated key, end to end.

    q8 has signed codes of 8 bits, and a float32 scale of each of the two.
    """

    def __init__(
        self, layout: KVLayout, sizes: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """sizes: of a latent and of a rotated key; dtype: what is computed in."""
        self._sizes, self._dtype = sizes, dtype
        shape = (layout.num_slots, layout.slot_tokens)
        self.values = zeros((*shape, sum(sizes)), layout.stored(dtype), device)
        self.scales = (
            zeros((*shape, len(sizes)), torch.float32, device) if layout.dtype == Q8 else None
        )

    def store(self, new: torch.Tensor, context: StepContext) -> None:
        """Write the latents and keys `new` (tokens, both sizes) to their slots."""
        at = context.slots, context.positions
        if self.scales is None:
            self.values[at] = new.to(self.values.dtype)
            return
        codes, scales = zip(*map(coded, new.split(self._sizes, dim=-1)), strict=True)
        self.values[at] = torch.cat(codes, dim=-1)
        self.scales[at] = torch.stack(scales, dim=-1)

    def read(self, slots: Range, tokens: Range) -> torch.Tensor:
        """(slots, tokens, both sizes), in what is computed in."""
        at = slice(slots.start, slots.stop), slice(tokens.start, tokens.stop)
        values = self.values[at]
        if self.scales is None:
            return values.to(self._dtype)
        scales = self.scales[at].repeat_interleave(self._repeats(), dim=-1)
        return values.to(self._dtype) * scales.to(self._dtype)

    def clear(self, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """See `SlotState.clear`, and `KVCache.clear`."""
        for part in (self.values, self.scales):
            if part is not None:
                part[slots, positions] = 0

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """See `SlotState.copy_slot`."""
        for part in (self.values, self.scales):
            if part is not None:
                part[target, :tokens].copy_(part[source, :tokens])

    def _repeats(self) -> torch.Tensor:
        return torch.tensor(self._sizes, device=self.values.device)
