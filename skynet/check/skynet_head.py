"""The output of SkyNet's last stage: logits, class logits or hidden states, by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from skynet.architecture.architecture import Architecture
from skynet.check.stacks import CheckedStack
from skynet.layers.dtypes import Dtypes
from skynet.layers.head import load_head
from skynet.layers.norm import load_norm
from skynet.layers.pooler import load_pooler
from skynet.layers.regions import Fetch
from skynet.layers.weights import Loader
from skynet.planning.plan import Plan, ShardPlan
from skynet.request.task_names import CLASSIFY
from skynet.wire.step import TextTask

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ShardResult:
    """Columns of the model's output, the first of them `start`.

    shard: the shard that computes them; None if one computes them for all.
    """

    shard: int | None
    start: int
    values: torch.Tensor  # (rows, width) float32


class SkynetHead:
    """The last stage's shards after the last layer.

    Methods take several hidden states, so that weights are loaded once, and return results for
    each.
    """

    def __init__(self, arch: Architecture, plan: Plan, fetch: Fetch, stack: CheckedStack) -> None:
        self._arch, self._fetch, self._stack = arch, fetch, stack
        self._parts, self._dtypes = plan.stages[-1].shards, Dtypes.of(plan)

    def logits(self, hidden: Sequence[torch.Tensor]) -> list[list[ShardResult]]:
        """Of (rows, hidden): logits of each shard's part of the vocabulary."""
        logits: list[list[ShardResult]] = [[] for _ in hidden]
        for shard, part in enumerate(self._parts):
            head = load_head(self._loader(part))
            for results, x in zip(logits, hidden, strict=True):
                values = head(x) if part.vocab.size else torch.empty(len(x), 0)
                results.append(ShardResult(shard, part.vocab.start, values))
        return logits

    def states(self, hidden: Sequence[torch.Tensor]) -> list[list[ShardResult]]:
        """Of (rows, hidden): hidden states after the last norm, if there is one."""
        norm = load_norm(self._loader(self._parts[0]), "final_norm")
        return [[ShardResult(None, 0, norm(x).float())] for x in hidden]

    def classes(self, hidden: Sequence[torch.Tensor]) -> list[list[ShardResult]]:
        """Of (tokens, hidden), a whole text: one row of class logits."""
        load = self._loader(self._parts[0])
        norm = load_norm(load, "final_norm")
        pooler = load_pooler(load, norm)
        rows = [replace(self._stack.row, text_task=TextTask(CLASSIFY))]
        logits = [torch.from_numpy(vector) for x in hidden for vector in pooler(rows, x)]
        return [[ShardResult(None, 0, each[None])] for each in logits]

    def _loader(self, part: ShardPlan) -> Loader:
        return Loader(self._stack.arch, self._stack.part(part), self._fetch, self._dtypes, CPU)
