"""Finds NaN and infinities in the results of a span, before they become an answer.

Masks put infinities among attention scores, inside the kernels; hidden states, logits and vectors
have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from skynet.errors import NotFinite
from skynet.layers.norm import AllReduce
from skynet.wire.step import Step

ADVICE = "`skynet check MODEL` and `skynet models verify` name bad weights"


def is_finite(x: torch.Tensor) -> bool:
    """One pass over `x`: NaN and infinities survive a sum; a sum that overflows is looked at."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def no_part(x: torch.Tensor) -> torch.Tensor:
    """The part of a shard where another shard's part is all of `x`: zeros.

    NaN where `x` is not finite, so that every shard of the stage finds it.
    """
    return x * 0


class FiniteCheck:
    """Raises for a shard's numbers that are none, of one step.

    address: of the shard, "stage0.shard1".
    """

    def __init__(self, step: Step, address: str) -> None:
        self._step, self._address = step, address

    def __call__(self, what: str, x: torch.Tensor, tokens: Sequence[int] | None = None) -> None:
        """Check `x`, a line for each of these tokens of the step; None: for all of them.

        Raises:
            NotFinite: names the shard, `what` and the first token, and has the rows.
        """
        if not is_finite(x):
            raise self._error(what, x, range(len(x)) if tokens is None else tokens)

    def partials(self, all_reduce: AllReduce, layer: int, embeds: bool) -> AllReduce:
        """The all-reduce of a layer, with a check of this shard's partials before each sum.

        embeds: the first sum is of the token embeddings.
        """
        names = iter(["the token embeddings"] if embeds else [])

        def checked(partial: torch.Tensor) -> torch.Tensor:
            self(next(names, f"the partial sums of layer {layer}"), partial)
            return all_reduce(partial)

        return checked

    def _error(self, what: str, x: torch.Tensor, tokens: Sequence[int]) -> NotFinite:
        places = [(number, at) for number, row in enumerate(self._step.rows) for at in row.places]
        finite = torch.isfinite(x)
        lines = (~finite.all(-1)).nonzero()[:, 0].tolist()
        rows = dict.fromkeys(places[tokens[line]][0] for line in lines)
        row, position = places[tokens[lines[0]]]
        token = self._step.rows[row].tokens[position - self._step.rows[row].start]
        return NotFinite(
            f"{self._address}: {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinities "
            f"among {x.numel()} numbers of {what}, first at token {token} at position {position}; "
            f"{ADVICE}",
            tuple(rows),
        )
