"""Transformers' model with the weights of one shard in some of its layers, run span by span.

The model's forward pass runs as it is, with all that it computes around and between its layers.
Layers before the span pass the hidden states on; the pass stops at the end of the span.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from skynet.architecture.transformers_model import TransformersWeight
from skynet.errors import ConfigurationError, StepFailed
from skynet.layers.cache import KVLayout
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce
from skynet.planning.ranges import Range
from skynet.transformers_backend.attention import Slots, register_attention
from skynet.transformers_backend.loader import TransformersLoader
from skynet.transformers_backend.placing import Placement, parameter_of
from skynet.transformers_backend.products import Column, Tokens
from skynet.transformers_backend.skeleton import build, transformers_version
from skynet.transformers_backend.state import Running, SpanEnd


class Body:
    """A model without weights; the `load_` methods place those of one shard."""

    def __init__(self, load: TransformersLoader, kv: KVLayout) -> None:
        """Raises ConfigurationError if the Transformers version is not the one described."""
        arch = load.arch
        if arch.transformers != transformers_version():
            raise ConfigurationError(
                f"{arch.model_type} was split with Transformers {arch.transformers}, and this is "
                f"{transformers_version()}: its layers may differ; install that version here, or "
                "split the model again with this one"
            )
        self._arch, self._kv, self._dtype, self._device = arch, kv, load.dtype, load.device
        self._running = Running()
        self._model = build(json.loads(arch.config), register_attention(), load.dtype, buffers=True)
        self._model.requires_grad_(requires_grad=False)
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(load.device)
        for layer, module in enumerate(self._model.get_submodule(arch.path)):
            module.forward = _Gate(layer, module.forward, self._running)
        tokens = self._tokens = self._model.get_input_embeddings()
        tokens.padding_idx = None  # a row of the whole table, which matters to training only
        tokens.forward = Tokens(tokens, load.part.vocab, arch.hidden_size, self._running)
        self._placement = Placement(self._model, arch, self._running)

    def load_tokens(self, load: TransformersLoader) -> int:
        """Load the shard's part of the token embeddings; returns its bytes."""
        table = load.matrix("embed")
        self._tokens._parameters["weight"] = parameter_of(table)
        return table.nbytes

    def load_head(self, load: TransformersLoader) -> int:
        """Load the last norm and the shard's part of the head; returns their bytes."""
        num_bytes, norm = 0, self._arch.weight("final_norm")
        if isinstance(norm, TransformersWeight):
            num_bytes += self._placement.place_whole(norm, None, load)
        product = load.linear("embed" if self._arch.tied else "head")
        self._model.set_output_embeddings(Column(product))
        return num_bytes + product.nbytes

    def load_layer(self, layer: int, load: TransformersLoader) -> tuple[Slots, int]:
        """Load a layer and allocate its KV slots; returns the slots, and the weights' bytes."""
        num_bytes = self._placement.place_layer(layer, load)
        slots = Slots(load, self._kv, layer, self._running)
        self._attention(layer).skynet_slots = slots
        return slots, num_bytes

    def unload_layers(self) -> None:
        """Free the weights and slots of all layers."""
        for layer in self._placement.undo():
            del self._attention(layer).skynet_slots

    def run(
        self,
        context: StepContext,
        span: Range,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> torch.Tensor:
        """The hidden states after the layers of `span`, (tokens, hidden) float32.

        hidden: those before the span, None before layer 0. An empty span returns what layer
            `span.start` would be given.
        """
        self._running.begin(context, all_reduce)
        return self._forward(span, hidden, context.ids, context.positions).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) after the last layer to logits (rows, vocabulary of this shard)."""
        return self._after_layers(self._model, "logits", x)

    def states(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) after the last layer to the base model's output, float32."""
        return self._after_layers(self._model.base_model, "last_hidden_state", x)

    def _attention(self, layer: int) -> Any:
        return self._model.get_submodule(f"{self._arch.path}.{layer}.{self._arch.attention}")

    def _after_layers(self, model: Any, field: str, x: torch.Tensor) -> torch.Tensor:
        count = self._arch.num_layers
        zeros = torch.zeros(len(x), dtype=torch.int64, device=self._device)
        return self._forward(Range(count, count + 1), x, zeros, zeros, model, field).float()

    def _forward(
        self,
        span: Range,
        hidden: torch.Tensor | None,
        ids: torch.Tensor,
        positions: torch.Tensor,
        model: Any = None,
        field: str = "logits",
    ) -> torch.Tensor:
        """The hidden states after the span; after the last layer, this field of the output."""
        running = self._running
        running.start, running.stop = span.start, span.stop
        running.given = None if hidden is None else hidden.to(self._device, self._dtype)[None]
        model = model or self._model
        try:
            out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        except SpanEnd as end:
            return end.hidden[0]
        finally:
            running.end()
        output: torch.Tensor = getattr(out, field)[0]
        return output


class _Gate:
    """The forward of one layer: runs it in its span, passes hidden states on before it."""

    def __init__(self, layer: int, forward: Callable[..., Any], running: Running) -> None:
        self._layer, self._forward, self._running = layer, forward, running

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        running, layer = self._running, self._layer
        if layer >= running.stop:
            raise SpanEnd(hidden_states)
        if layer < running.start - 1:
            return hidden_states
        if layer == running.start - 1:
            # Here, so that what the model does between two layers is done to these states.
            return _required(running.given)
        if layer == 0 and running.given is not None:
            hidden_states = running.given
        out: torch.Tensor = self._forward(hidden_states, *args, **kwargs)
        if layer == running.stop - 1:
            raise SpanEnd(out)
        return out


def _required(hidden: torch.Tensor | None) -> torch.Tensor:
    if hidden is None:
        raise StepFailed("a span after layer 0 has no hidden states")
    return hidden
