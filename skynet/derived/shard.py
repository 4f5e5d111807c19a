"""One shard of a family without a file: a `ShardModel` whose layers are Transformers' own."""

from __future__ import annotations

import torch

from skynet.derived.attention import Slots
from skynet.derived.body import Body
from skynet.derived.loader import DerivedLoader
from skynet.layers.norm import AllSum
from skynet.layers.reading import Reader, Vector
from skynet.layers.shard_model import DTYPES, ShardModel
from skynet.layers.weights import Fetch, Progress
from skynet.models.derived import Derived
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.step import Candidates, Step


class DerivedShard(ShardModel):
    """Computes one shard of one stage of a plan; the same from outside as a `ShardModel`."""

    @torch.inference_mode()
    def __init__(  # not the parent's: it would make our layers
        self,
        arch: Derived,
        plan: Plan,
        stage: int,
        shard: int,
        fetch: Fetch,
        device: str = "cpu",
        progress: Progress | None = None,
        kept: ShardModel | None = None,
        consume: bool = False,
    ) -> None:
        """Load the slice; arguments as of `ShardModel`.

        Raises:
            ConfigurationError: Transformers is not the version that described the model.
        """
        self._arch, self._plan, self._shard = arch, plan, shard
        self.layers = plan.stages[stage].layers
        part = plan.stages[stage].shards[shard]
        self._vocab, self._device = part.vocab, torch.device(device)
        dtype = self._dtype = DTYPES[plan.dtype]
        pieces = self._usable(kept, consume) if kept is not None else None
        load = DerivedLoader(arch, part, fetch, dtype, self._device, progress, pieces)
        body = self._body = Body(arch, plan, part, dtype, self._device)
        self.weight_bytes: int = 0
        if self.layers.start == 0:
            self.weight_bytes += body.load_tokens(load)
        slots: list[Slots] = []
        for layer in range(self.layers.start, self.layers.stop):
            own, num_bytes = body.load_layer(layer, load)
            slots.append(own)
            self.weight_bytes += num_bytes
        # The parent asks its layers for windows and slots, and its head for logits: no more.
        self._layers = slots  # type: ignore[assignment]
        self._head = self._reader = None
        if self.layers.stop == arch.num_layers:
            self.weight_bytes += body.load_head(load)
            self._head = body.head  # type: ignore[assignment]
            self._reader = Reader(_LastNorm(body), None, None, arch.label_pooling, dtype)
        self._rotaries, self._bias, self._context = [], None, None
        self._token_bytes = 2 * part.kv_heads.size * arch.head_dim * dtype.itemsize
        self.fetched_bytes = load.fetched_bytes
        self._pieces = load.pieces

    @torch.inference_mode()
    def run(
        self, step: Step, span: Range, hidden: torch.Tensor | None, all_sum: AllSum
    ) -> tuple[torch.Tensor | None, list[Candidates], list[Vector]]:
        """As `ShardModel.run`; the first shard has all of the hidden states after the span."""
        self._check(step, span, hidden)
        context = self._prepare(step)
        if span.start == self.layers.start:
            self._copy_slots(step)
        x = self._body.run(context, span.start, span.stop, hidden, all_sum)
        if span.stop == self._arch.num_layers:
            return None, self._candidates(step, x), self._vectors(step, x)
        return (x if self._shard == 0 else torch.zeros_like(x)), [], []

    def _take_apart(self) -> None:
        super()._take_apart()
        del self._body


class _LastNorm:
    """What the model does after its last layer, as a reader of hidden states calls it."""

    nbytes = 0  # counted with the head

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._body.states(x)
