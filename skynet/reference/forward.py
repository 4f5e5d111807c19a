"""Transformers' own model and forward pass, with one layer's weights in memory.

The model is built without weights. Hooks load those of a layer, an embedding or a head just before
it runs, with the safetensors library, and free them after it. Everything else, masks, ropes and
differences between layers, is the model's code. Knows nothing of SkyNet's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import UnsupportedModel
from skynet.reference.layer import Cuts, DenseLayer, ReferenceLayer, path_of_layers, weight_of
from skynet.reference.model import build, reference_model, with_module_names, without_prefix
from skynet.reference.weights import ReferenceWeights


def _no_cuts(layer: int) -> Cuts:
    return {}


class Visitor(Protocol):
    """Receives Transformers' results in order, each after its weights were freed."""

    def embedding(self, rows: torch.Tensor) -> None:
        """`rows` (tokens, embedding) of a stack's embedding table; its layers follow."""
        ...

    def layer(self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer) -> None:
        """A layer's input and output, (tokens, hidden), and its products.

        layer: counted over all stacks.
        dense: empty on the Transformers backend, whose modules have no roles.
        """
        ...

    def encoder_output(self, states: torch.Tensor) -> None:
        """The encoder's output, (tokens, hidden)."""
        ...

    def output(self, result: torch.Tensor) -> None:
        """The model's output, (rows, width); see `ReferenceModel.result`."""
        ...


class Reference:
    """Transformers' model of one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arch: Architecture,
        dtype: torch.dtype,
        cuts: Callable[[int], Cuts] = _no_cuts,
    ) -> None:
        """cuts: of a layer's products, by its number in the model."""
        kind = reference_model(arch)
        arch = without_prefix(arch) if kind.bare else arch
        self._kind, self._cuts = kind, cuts
        self._model, config = build(checkpoint, kind, dtype)
        self._weights = ReferenceWeights(checkpoint, arch, self._model, config, dtype)
        self._arch = arch = with_module_names(arch)
        self._layers: list[ReferenceLayer] = []
        for stack in arch.stacks:
            count = len(self._model.get_submodule(path_of_layers(stack)))
            if count != stack.num_layers:
                raise UnsupportedModel(
                    f"{checkpoint.path}: Transformers' model has {count} layers, SkyNet's "
                    f"{stack.num_layers}"
                )
            self._layers += [ReferenceLayer(self._model, stack, number) for number in range(count)]
            if stack.disentangled:
                self._weights.keep(weight_of(stack, "distances").name)

    @torch.inference_mode()
    def run(
        self, inputs: Sequence[list[int]], visitor: Visitor, only: Collection[int] | None = None
    ) -> None:
        """One forward pass over each stack's token ids; `visitor` receives the results.

        only: layers that run, all by default; the others pass the hidden states on.
        """
        self._hook_outside_layers(visitor, torch.tensor([inputs[0]]))
        for number, layer in enumerate(self._layers):
            if only is None or number in only:
                self._hook_layer(number, layer, visitor)
            else:
                layer.module.forward = _identity
        if self._arch.encoder is not None:
            self._hook_encoder_output(visitor)
        names = zip(self._kind.inputs, inputs, strict=True)
        arguments = {name: torch.tensor([ids]) for name, ids in names}
        result = getattr(self._model(**arguments, **self._kind.options), self._kind.result)
        visitor.output(result.reshape(-1, result.shape[-1]))

    def _hook_outside_layers(self, visitor: Visitor, ids: torch.Tensor) -> None:
        """ids: of the first stack, (1, tokens)."""
        tables = self._tables()
        hooked = {id(inner) for layer in self._layers for inner in layer.module.modules()}
        for path, module in self._model.named_modules():
            if id(module) in hooked or not module._parameters:
                continue
            # With its submodules, which must not be loaded a second time.
            hooked |= {id(inner) for inner in module.modules()}

            def fill(module: torch.nn.Module, args: Any, path: str = path) -> Any:
                self._weights.fill(module, path)
                # Llama 4 moves ids to the device of the table's weight, which was not loaded then.
                return (ids,) if id(module) in tables and args[0].is_meta else None

            def free(module: torch.nn.Module, args: Any, _: Any) -> None:
                rows = None
                if id(module) in tables:
                    rows = F.embedding(args[0][0], module.get_parameter("weight"))
                self._weights.free()
                if rows is not None:
                    visitor.embedding(rows)

            module.register_forward_pre_hook(fill)
            module.register_forward_hook(free)

    def _tables(self) -> set[int]:
        """Ids of the token embeddings; stacks may share the module, or its weights."""
        embeds = [weight_of(stack, "embed") for stack in self._arch.stacks]
        names = {name for embed in embeds for name in (embed.name, *embed.others)}
        named = self._model.named_modules(remove_duplicate=False)
        head = self._model.get_output_embeddings()
        return {id(module) for path, module in named if path in names and module is not head}

    def _hook_layer(self, number: int, layer: ReferenceLayer, visitor: Visitor) -> None:
        inputs: list[torch.Tensor] = []

        def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._weights.fill(module, layer.path)
            inputs.append(args[0] if args else kwargs["hidden_states"])

        def after(_: torch.nn.Module, __: Any, output: Any) -> None:
            dense = layer.dense(self._cuts(number))
            self._weights.free()
            layer.forget()
            x, out = inputs.pop()[0], output[0] if isinstance(output, tuple) else output
            visitor.layer(number, x, out.view(x.shape), dense)

        layer.module.register_forward_pre_hook(before, with_kwargs=True)
        layer.module.register_forward_hook(after)
        layer.record()

    def _hook_encoder_output(self, visitor: Visitor) -> None:
        def before(_: torch.nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
            visitor.encoder_output(kwargs["encoder_hidden_states"][0])

        decoder = self._model.get_submodule(path_of_layers(self._arch).rpartition(".")[0])
        decoder.register_forward_pre_hook(before, with_kwargs=True)


def _identity(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states
