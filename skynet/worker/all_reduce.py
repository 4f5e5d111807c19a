"""The sum a shard's layers ask for: its partial out, the peers' in, added in shard order."""

from __future__ import annotations

import torch

from skynet.store.exchange import Exchange
from skynet.wire.frame import BFLOAT16, Frame


class AllReduce:
    """Sums partials over a stage's shards, for one span of one step.

    Positions number the sums of a step, after the embedding's; how many a layer has is the
    architecture's (`Architecture.first_sum`). Every shard makes the same sums in the same order,
    so the numbers agree without a word.

    dtype: what partials travel as, "auto" (as they were computed), "float32" or "bfloat16". The
        own partial is rounded the same way, or shards would hold different sums.
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
        own, mine = self._pack(partial)
        position, self.position = self.position, self.position + 1
        frames = self.exchange.swap(self.epoch, self.step, position, mine)
        total: torch.Tensor | None = None
        for shard in range(len(frames)):
            part = own if shard == self.exchange.shard else _unpack(frames[shard])
            total = part if total is None else total + part
        return own if total is None else total.to(partial.device)

    def _pack(self, partial: torch.Tensor) -> tuple[torch.Tensor, Frame]:
        """This shard's partial as the others will read it: in float32, and as it travels."""
        if self.dtype == "bfloat16":
            partial = partial.to(torch.bfloat16)
        own = partial.float() if partial.is_cpu else partial.float().cpu()
        if self.dtype != "float32" and partial.dtype == torch.bfloat16:
            return own, Frame.of(partial.cpu().view(torch.uint16).numpy())
        return own, Frame.of(own.numpy())


def _unpack(frame: Frame) -> torch.Tensor:
    values = torch.from_numpy(frame.copy())
    return values.view(torch.bfloat16).float() if frame.kind == BFLOAT16 else values
