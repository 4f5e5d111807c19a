"""The all-reduce of a shard's layers: partials are exchanged and added in shard order."""

from __future__ import annotations

import torch

from skynet.exchange.exchange import Exchange
from skynet.exchange.fast_sum import MAX_FLOATS
from skynet.exchange.sums import add_in_order, sum_of_shards
from skynet.kernels.sums import Sums
from skynet.wire.frame import Frame


class AllReduce:
    """Sums partials over a stage's shards, for one span of one step.

    Positions number the sums of a step; `Architecture.first_sum` says how many a layer has. Every
    shard makes the same sums in the same order, so the positions agree.

    dtype: of the partials in the exchange: "auto" (as computed), "float32", "bfloat16" or "int8". A
        shard rounds its partial in its sum too, or shards would hold different sums.
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
        at = (self.epoch, self.step, self.position)
        self.position += 1
        done = None
        if (
            self.dtype == "auto"
            and partial.dtype == torch.bfloat16
            and partial.numel() <= MAX_FLOATS
        ):
            partial = partial.float()  # of a decoding step: the quick way is worth the bytes
        if self.dtype in ("auto", "float32") and _is_plain(partial):
            total = torch.empty_like(partial)
            shape = (partial.shape[0], partial.shape[1])
            done = self.exchange.try_fast(at, shape, partial.data_ptr(), total.data_ptr())
            if done:
                return total
        frame = self._pack(partial)
        if done is None:
            summed = sum_of_shards(self.exchange, at, frame)
        else:
            summed = add_in_order(self.exchange.finish(at, frame))
        return torch.from_numpy(summed).to(partial.device)

    def sums(self, shape: tuple[int, int]) -> Sums | None:
        """See `SummedInC.sums`."""
        if self.dtype not in ("auto", "float32"):
            return None
        return self.exchange.fast_sums((self.epoch, self.step, self.position), shape)

    def resume(self, sums: Sums, done: int, partial: torch.Tensor | None) -> torch.Tensor | None:
        """See `SummedInC.resume`."""
        self.exchange.waited_s += sums.waited_s
        self.position += done
        if partial is None:
            return None
        at = (self.epoch, self.step, self.position)
        self.position += 1
        return torch.from_numpy(add_in_order(self.exchange.finish(at, self._pack(partial))))

    @property
    def is_alone(self) -> bool:
        """See `SummedInC.is_alone`."""
        return not self.exchange.peers

    def _pack(self, partial: torch.Tensor) -> Frame:
        """This shard's partial as it travels."""
        if self.dtype == "bfloat16":
            partial = partial.to(torch.bfloat16)
        if not partial.is_cpu:
            partial = partial.cpu()
        if self.dtype in ("auto", "bfloat16") and partial.dtype == torch.bfloat16:
            return Frame.of(partial.view(torch.uint16).numpy())
        floats = (partial if partial.dtype == torch.float32 else partial.float()).numpy()
        return Frame.of_int8(floats) if self.dtype == "int8" else Frame.of(floats)


def _is_plain(partial: torch.Tensor) -> bool:
    return partial.dtype == torch.float32 and partial.is_cpu and partial.is_contiguous()
