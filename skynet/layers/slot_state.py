"""What a layer keeps of sequences: the interface of KV caches, latents and recurrent states."""

from __future__ import annotations

from typing import Protocol

import torch


class SlotState(Protocol):
    """Keeps something of each sequence, in its slot; memory is taken when a slot is written.

    A step appends the tokens of its rows to their slots. It may come again after a failure: what a
    slot had before the step must stay until a later step continues after it.
    """

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """Copy what slot `source` has of its first `tokens` tokens to slot `target`.

        Raises:
            StepFailed: it has no state of just these tokens, and cannot go back to it.
        """
        ...

    def clear(self, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """Undo what a failed step has written of its tokens, (tokens,) each."""
        ...
