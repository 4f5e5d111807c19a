"""Per-layer inputs of a step's tokens (Gemma 4): a row of the layer's table, and a product of the
embedding."""

from __future__ import annotations

import torch

from skynet.architecture.weight import INPUT_OUTPUT, INPUT_TABLE
from skynet.errors import StepFailed
from skynet.kernels.steps import Program
from skynet.layers.activation import ACTIVATIONS
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce, load_norm
from skynet.layers.weights import Loader

HALF = 2.0**-0.5  # of the sum of two inputs of the same size


class PerLayerInput:
    """The hidden states gate the input, whose product is added to them; shards divide its columns.

    The norm of the embedding's product is over all columns: every shard computes all of these.
    """

    def __init__(self, load: Loader, layer: int) -> None:
        arch = load.arch
        width = arch.size("inputs")
        self._activation = ACTIVATIONS[arch.activation]
        self._columns = load.regions.units(load.regions.weight("input_gate"))
        self._gate = load.linear("input_gate", layer=layer)
        self._out = load.linear(INPUT_OUTPUT, layer=layer, bias=False)
        self._table = load.rows(INPUT_TABLE, layer)
        self._embedding = load.linear("input_model", layer=layer)
        self._norm = load_norm(load, "input_model_norm", layer, torch.float32)
        # Transformers rounds this scale to what it computes in.
        self._table_scale = float(torch.tensor(width**0.5, dtype=load.dtype))
        self._embedding_scale, self._dtype = arch.hidden_size**-0.5, load.dtype
        parts = (self._gate, self._out, self._table, self._embedding, self._norm)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(
        self, x: torch.Tensor, context: StepContext, all_reduce: AllReduce
    ) -> torch.Tensor:
        """See `Module`."""
        gate = self._activation(self._gate(x))
        return self._out(gate * self._input(context).to(gate.dtype))

    def emit(self, program: Program, source: int, target: int) -> bool:
        """See `Module.emit`."""
        return False

    def _input(self, context: StepContext) -> torch.Tensor:
        """The shard's columns of the input, (tokens, columns) float32."""
        if context.embeddings is None:
            raise StepFailed("the step came without the embeddings of its tokens")
        product = self._embedding(context.embeddings.to(self._dtype)).float()
        normed = self._norm(product.mul_(self._embedding_scale))
        own = normed[:, self._columns.start : self._columns.stop]
        return (own + self._table(context.ids).float() * self._table_scale) * HALF
