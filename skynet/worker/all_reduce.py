"""The sum a shard's layers ask for: its partial out, the peers' in, added in shard order."""

from __future__ import annotations

import numpy as np
import torch

from skynet.store.exchange import BFLOAT16, FLOAT32, Exchange, Frame


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
        rows, columns = partial.shape
        if self.dtype == "bfloat16":
            partial = partial.to(torch.bfloat16)
        own = partial.float() if partial.is_cpu else partial.float().cpu()
        if self.dtype != "float32" and partial.dtype == torch.bfloat16:
            bits = partial.cpu().contiguous().view(torch.uint16)
            return own, Frame(BFLOAT16, rows, columns, bits.numpy().tobytes())
        return own, Frame(FLOAT32, rows, columns, own.numpy().tobytes())


def _unpack(frame: Frame) -> torch.Tensor:
    kind = np.uint16 if frame.kind == BFLOAT16 else np.float32
    # A copy: torch wants memory that may be written.
    array = np.frombuffer(bytearray(frame.data), dtype=kind).reshape(frame.rows, frame.columns)
    values = torch.from_numpy(array)
    return values.view(torch.bfloat16).float() if frame.kind == BFLOAT16 else values
