"""Transformers' model with the weights of one shard in some of its layers, run span by span.

The model's own forward pass is run, so that whatever it does around and between its layers is done
right. Layers outside of the span let the hidden states through; what comes after it is not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from skynet.architecture.transformers_model import TransformersArchitecture, TransformersWeight
from skynet.errors import ConfigurationError, StepFailed
from skynet.layers.context import StepContext
from skynet.layers.norm import AllReduce
from skynet.planning.plan import Plan, ShardPlan
from skynet.transformers_backend.attention import Slots, register_attention
from skynet.transformers_backend.loader import TransformersLoader
from skynet.transformers_backend.products import Column, Gather, Row, Summed, Tokens
from skynet.transformers_backend.skeleton import build, transformers_version
from skynet.transformers_backend.state import Running, SpanEnd


class Body:
    """A model without weights; `load_` methods put those of one shard in."""

    def __init__(
        self,
        arch: TransformersArchitecture,
        plan: Plan,
        part: ShardPlan,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises ConfigurationError where Transformers is not the version that was described."""
        if arch.transformers != transformers_version():
            raise ConfigurationError(
                f"{arch.model_type} was split with Transformers {arch.transformers}, and this is "
                f"{transformers_version()}: its layers may differ; install that version here, or "
                "split the model again with this one"
            )
        self._arch, self._plan, self._part = arch, plan, part
        self._dtype, self._device = dtype, device
        self._running = Running()
        self._model = build(json.loads(arch.config), register_attention(), dtype, buffers=True)
        self._model.requires_grad_(requires_grad=False)
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        for layer, module in enumerate(self._model.get_submodule(arch.path)):
            module.forward = _Gate(layer, module.forward, self._running)
        tokens = self._tokens = self._model.get_input_embeddings()
        tokens.padding_idx = None  # a row of the whole table, which matters to training only
        tokens.forward = Tokens(tokens, part.vocab, arch.hidden_size, self._running)
        self._undo: dict[int, list[Callable[[], None]]] = {}  # by layer

    # -- weights -------------------------------------------------------------------------------

    def load_tokens(self, load: TransformersLoader) -> int:
        """The shard's part of the tokens' table; returns its bytes."""
        table = load.matrix("embed")
        self._tokens._parameters["weight"] = _parameter(table)
        return table.nbytes

    def load_head(self, load: TransformersLoader) -> int:
        """The last norm, and the shard's part of the head; returns their bytes."""
        num_bytes, norm = 0, self._arch.weight("final_norm")
        if isinstance(norm, TransformersWeight):
            num_bytes += self._put_whole(norm, None, load, [])
        product = load.linear("embed" if self._arch.tied else "head")
        self._model.set_output_embeddings(Column(product))
        return num_bytes + product.nbytes

    def load_layer(self, layer: int, load: TransformersLoader) -> tuple[Slots, int]:
        """A layer's weights and its KV slots; returns the slots, and the bytes of the weights."""
        undo: list[Callable[[], None]] = []
        num_bytes = 0
        parameters: dict[str, list[TransformersWeight]] = {}  # of experts
        for weight in self._arch.weights:
            if isinstance(weight, TransformersWeight) and weight.per_layer and weight.is_in(layer):
                if weight.style == "experts":
                    parameters.setdefault(weight.parameter, []).append(weight)
                    continue
                put = self._put_whole if weight.style == "whole" else self._put_product
                num_bytes += put(weight, layer, load, undo)
        for parameter, weights in parameters.items():
            num_bytes += self._put_experts(parameter, weights, layer, load, undo)
        slots = Slots(
            self._arch, self._plan, self._part, layer, self._running, self._dtype, self._device
        )
        self._attention(layer).skynet_slots = slots
        self._undo[layer] = undo
        return slots, num_bytes

    def unload_layers(self) -> None:
        """Let go of the weights and slots of all layers."""
        for layer, undos in self._undo.items():
            for undo in undos:
                undo()
            del self._attention(layer).skynet_slots
        self._undo = {}

    def _attention(self, layer: int) -> Any:
        return self._model.get_submodule(f"{self._arch.path}.{layer}.{self._arch.attention}")

    def _put_product(
        self,
        weight: TransformersWeight,
        layer: int,
        load: TransformersLoader,
        undo: list[Callable[[], None]],
    ) -> int:
        """Put our product in the place of the module that is cut."""
        product = load.product(weight, layer)
        bias = load.vector(weight.role, "bias", layer) if _biased_row(weight) else None
        running, part = self._running, load.units(weight)
        made: nn.Module
        if weight.style == "column":
            made = Column(product)
        elif weight.style == "gather":
            made = Gather(product, part, weight.sizes[0], running)
        else:
            made = Row(product, bias, running, part if weight.style == "split" else None)
        above, _, name = f"{self._arch.path}.{layer}.{weight.role}".rpartition(".")
        modules = self._model.get_submodule(above)._modules
        whole, modules[name] = modules[name], made
        undo.append(partial(modules.__setitem__, name, whole))
        return product.nbytes + (0 if bias is None else bias.nbytes)

    def _put_experts(
        self,
        parameter: str,
        weights: list[TransformersWeight],
        layer: int,
        load: TransformersLoader,
        undo: list[Callable[[], None]],
    ) -> int:
        """Give a module of experts the shard's columns of all of them, and sum what it gives."""
        value = load.experts(weights, layer)
        above, _, name = f"{self._arch.path}.{layer}.{parameter}".rpartition(".")
        module = self._model.get_submodule(above)
        empty, module._parameters[name] = module._parameters[name], _parameter(value)
        undo.append(partial(module._parameters.__setitem__, name, empty))
        if not isinstance(module.forward, Summed):
            undo.append(partial(setattr, module, "forward", module.forward))
            module.forward = Summed(module.forward, self._running)
        return value.nbytes

    def _put_whole(
        self,
        weight: TransformersWeight,
        layer: int | None,
        load: TransformersLoader,
        undo: list[Callable[[], None]],
    ) -> int:
        """Give a module that no shard cuts its parameters, or a buffer."""
        num_bytes = 0
        path = weight.name if layer is None else f"{self._arch.path}.{layer}.{weight.role}"
        for kind in ("weight", "bias") if weight.bias else ("weight",):
            above, _, name = (path if weight.bare else f"{path}.{kind}").rpartition(".")
            module = self._model.get_submodule(above)
            own: dict[str, Any] = module._buffers if weight.buffer else module._parameters
            value = load.whole(weight, kind, layer)
            empty, own[name] = own[name], value if weight.buffer else _parameter(value)
            undo.append(partial(own.__setitem__, name, empty))
            num_bytes += value.nbytes
        return num_bytes

    # -- running -------------------------------------------------------------------------------

    def run(
        self,
        context: StepContext,
        start: int,
        stop: int,
        hidden: torch.Tensor | None,
        all_reduce: AllReduce,
    ) -> torch.Tensor:
        """The hidden states after the layers [start, stop), (tokens, hidden) float32.

        hidden: those before, None before layer 0. With no layers: what comes to layer `start`.
        """
        self._running.begin(context, all_reduce)
        return self._forward(start, stop, hidden, context.ids, context.positions).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) after the last layer to logits (rows, vocabulary of this shard)."""
        return self._after_layers(self._model, "logits", x)

    def states(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, hidden) after the last layer to the base model's output, float32."""
        return self._after_layers(self._model.base_model, "last_hidden_state", x)

    def _after_layers(self, model: Any, field: str, x: torch.Tensor) -> torch.Tensor:
        count = self._arch.num_layers
        places = torch.zeros(len(x), dtype=torch.int64, device=self._device)
        return self._forward(count, count + 1, x, places, places, model, field).float()

    def _forward(
        self,
        start: int,
        stop: int,
        hidden: torch.Tensor | None,
        ids: torch.Tensor,
        positions: torch.Tensor,
        model: Any = None,
        field: str = "logits",
    ) -> torch.Tensor:
        """Of one pass, the hidden states where the span ends, or else a field of the output."""
        running = self._running
        running.start, running.stop = start, stop
        running.given = None if hidden is None else hidden.to(self._device, self._dtype)[None]
        model = model or self._model
        try:
            out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        except SpanEnd as end:
            return end.hidden[0]
        finally:
            running.end()
        found: torch.Tensor = getattr(out, field)[0]
        return found


class _Gate:
    """The forward of one layer: runs it in its span, lets hidden states through before that."""

    def __init__(self, layer: int, forward: Callable[..., Any], running: Running) -> None:
        self._layer, self._forward, self._running = layer, forward, running

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        running, layer = self._running, self._layer
        if layer >= running.stop:
            raise SpanEnd(hidden_states)
        if layer < running.start - 1:
            return hidden_states
        if layer == running.start - 1:
            return _required(running.given)  # so that what is done between layers is done to it
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


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _biased_row(weight: TransformersWeight) -> bool:
    return weight.bias and weight.cut == "row"
