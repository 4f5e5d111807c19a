"""The all-reduce of a shard's layers: partials are exchanged and added in shard order."""

from __future__ import annotations

import torch

from skynet.store.exchange import Exchange
from skynet.wire.frame import BFLOAT16, Frame


class AllReduce:
    """Sums partials over a stage's shards, for one span of one step.

    Positions number the sums of a step; `Architecture.first_sum` says how many a layer has. Every
    shard makes the same sums in the same order, so the positions agree.

    dtype: of the partials in the exchange: "auto" (as computed), "float32" or "bfloat16". A shard
        rounds its partial in its sum too, or shards would hold different sums.
    """

    def __init__(
        self, exchange: Exchange, epoch: int, step: int, position: int, dtype: str = "auto"
    ) -> None:
        self.exchange = exchange
        self.epoch = epoch
        self.step = step
        self.position = position
        self.dtype = dtype

    def __call__(self, partial: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) -> the sum, float32, same bits on every shard."""
        if not self.exchange.peers:
            return partial.float()
        rounded, frame = self._pack(partial)
        position, self.position = self.position, self.position + 1
        frames = self.exchange.swap(self.epoch, self.step, position, frame)
        total: torch.Tensor | None = None
        for shard in range(len(frames)):
            part = rounded if shard == self.exchange.shard else _unpack(frames[shard])
            total = part if total is None else total + part
        return rounded if total is None else total.to(partial.device)

    def _pack(self, partial: torch.Tensor) -> tuple[torch.Tensor, Frame]:
        """This shard's partial as its peers decode it, in float32, and its frame."""
        if self.dtype == "bfloat16":
            partial = partial.to(torch.bfloat16)
        rounded = partial.float() if partial.is_cpu else partial.float().cpu()
        if self.dtype != "float32" and partial.dtype == torch.bfloat16:
            return rounded, Frame.of(partial.cpu().view(torch.uint16).numpy())
        return rounded, Frame.of(rounded.numpy())


def _unpack(frame: Frame) -> torch.Tensor:
    values = torch.from_numpy(frame.copy())
    return values.view(torch.bfloat16).float() if frame.kind == BFLOAT16 else values
