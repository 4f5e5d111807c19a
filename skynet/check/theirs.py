"""Their side: Transformers' own model and forward pass, with one layer's weights in memory.

The model is built without weights. Hooks read those of a layer, or of an end, just before it runs,
with the safetensors library, and let go of them after it. So everything else, masks, ropes and what
differs between layers, is what the model itself makes of it. Knows nothing of our layers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from skynet.check.their_model import TheirModel, build, without_prefix
from skynet.check.their_weights import TheirWeights, parameter
from skynet.errors import UnsupportedModel
from skynet.models.architecture import Architecture, Weight
from skynet.models.checkpoint import Checkpoint
from skynet.models.derived import Derived


class Visitor(Protocol):
    """Is told what Transformers computes, in order, when the weights for it are free again."""

    def embedding(self, rows: torch.Tensor) -> None:
        """`rows` (tokens, embedding) of the embedding's table, as they lie there."""
        ...

    def layer(
        self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer | None
    ) -> None:
        """A layer's input and output, (tokens, hidden), and what is known of its inside.

        Of a family without a file nothing is: its modules have no roles.
        """
        ...

    def end(self, result: torch.Tensor) -> None:
        """What the model ends in, (rows, width); see `TheirModel.result`."""
        ...


class DenseLayer:
    """Partials of a layer, by a product with the other shards' inputs left out."""

    def __init__(self, heads: list[torch.Tensor], columns: list[torch.Tensor]) -> None:
        self.attention, self.mlp = heads, columns  # by shard, (tokens, hidden)
        self.norm_inputs: tuple[torch.Tensor, torch.Tensor] | None = None  # (tokens, all heads)


class Cuts(Protocol):
    """How a layer is cut: the numbers of each shard's inputs of `o` and of `down`."""

    def __call__(self, layer: int) -> tuple[list[slice], list[slice]]: ...


class Theirs:
    """One checkpoint as Transformers computes it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arch: Architecture,
        kind: TheirModel,
        dtype: torch.dtype,
        cuts: Cuts,
    ) -> None:
        self._arch = arch = without_prefix(arch) if kind.bare else arch
        self._kind, self._cuts = kind, cuts
        self._model, config = build(checkpoint, kind, dtype)
        self._layers = self._model.get_submodule(_path_of_layers(arch))
        if len(self._layers) != arch.num_layers:
            raise UnsupportedModel(
                f"Transformers makes {len(self._layers)} layers of {checkpoint.path}, SkyNet "
                f"{arch.num_layers}"
            )
        self._seen: dict[str, Any] = {}  # inputs of the modules inside of a layer
        self._weights = TheirWeights(checkpoint, arch, self._model, config, dtype)

    @torch.inference_mode()
    def run(self, ids: list[int], visitor: Visitor, only: Collection[int] | None = None) -> None:
        """One forward pass over a prompt; `visitor` is called on the way.

        only: layers that are run, all by default; others let the hidden states through.
        """
        self._hook_ends(ids, visitor)
        for layer, module in enumerate(self._layers):
            if only is None or layer in only:
                self._hook_layer(layer, module, visitor)
            else:
                module.forward = _let_through
        found = self._model(input_ids=torch.tensor([ids]), **self._kind.options)
        result = getattr(found, self._kind.result)
        visitor.end(result.reshape(-1, result.shape[-1]))

    def _hook_ends(self, ids: list[int], visitor: Visitor) -> None:
        table = self._model.get_submodule(_weight(self._arch, "embed").name)
        filled = {id(module) for module in self._layers.modules()}
        for path, module in self._model.named_modules():
            if id(module) in filled or not module._parameters:
                continue
            # With all within, which must not be filled a second time.
            filled |= {id(inner) for inner in module.modules()}

            def fill(module: torch.nn.Module, _: Any, path: str = path) -> None:
                self._weights.fill(module, path)

            def free(module: torch.nn.Module, *_: Any) -> None:
                rows = None
                if module is table:
                    rows = F.embedding(torch.tensor(ids), module.get_parameter("weight"))
                self._weights.free()
                if rows is not None:
                    visitor.embedding(rows)

            module.register_forward_pre_hook(fill)
            module.register_forward_hook(free)

    def _hook_layer(self, layer: int, module: torch.nn.Module, visitor: Visitor) -> None:
        path = f"{_path_of_layers(self._arch)}.{layer}"

        def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._weights.fill(module, path)
            self._seen = {"x": args[0] if args else kwargs["hidden_states"]}

        def after(module: torch.nn.Module, _: Any, output: Any) -> None:
            dense = self._dense(layer, module)
            self._weights.free()
            x, out = self._seen["x"][0], output[0] if isinstance(output, tuple) else output
            self._seen = {}
            visitor.layer(layer, x, out.view(x.shape), dense)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
        for role in ("o", "down", "q_norm", "k_norm"):
            self._record(role, layer, module)

    def _record(self, role: str, layer: int, module: torch.nn.Module) -> None:
        """Keep what goes into the module of a role."""
        inner = self._inner(role, layer, module)
        if inner is None:
            return

        def keep(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            # The first time only: experts are run again below, for partials.
            self._seen.setdefault(role, (args, kwargs))

        inner.register_forward_pre_hook(keep, with_kwargs=True)

    def _inner(self, role: str, layer: int, module: torch.nn.Module) -> torch.nn.Module | None:
        weight = self._arch.weight(role)
        if weight is None:
            return None
        if not weight.in_pieces:
            return self._model.get_submodule(weight.name.format(layer=layer))
        return _experts(module) if role == "down" else None

    def _dense(self, layer: int, module: torch.nn.Module) -> DenseLayer | None:
        if isinstance(self._arch, Derived):
            return None
        heads, columns = self._cuts(layer)
        attention = self._products("o", layer, module, heads)
        mlp = (
            self._expert_products(module, columns)
            if self._arch.num_experts
            else self._products("down", layer, module, columns)
        )
        dense = DenseLayer(attention, mlp)
        if self._arch.qk_norm == "all":
            queries, keys = (self._seen[role][0][0][0] for role in ("q_norm", "k_norm"))
            dense.norm_inputs = queries.float(), keys.float()
        return dense

    def _products(
        self, role: str, layer: int, module: torch.nn.Module, cuts: list[slice]
    ) -> list[torch.Tensor]:
        inner = self._inner(role, layer, module)
        if inner is None:
            raise UnsupportedModel(f"{self._arch.model_type} has no product {role!r} to check")
        x = self._seen[role][0][0]
        x = x.reshape(-1, x.shape[-1]).float()
        matrix = inner.get_parameter("weight").float()
        matrix = matrix if _weight(self._arch, role).transposed else matrix.t()  # (in, out)
        return [x[:, cut] @ matrix[cut] for cut in cuts]

    def _expert_products(self, module: torch.nn.Module, cuts: list[slice]) -> list[torch.Tensor]:
        """The experts with all columns but a shard's at zero."""
        experts = _experts(module)
        if experts is None:
            raise UnsupportedModel(f"Transformers' {type(module).__name__} has no fused experts")
        args, kwargs = self._seen["down"]
        whole, found = experts._parameters["down_proj"], []
        for cut in cuts:
            masked = torch.zeros_like(whole)  # type: ignore[arg-type]
            masked[:, :, cut] = whole[:, :, cut]  # type: ignore[index]
            experts._parameters["down_proj"] = parameter(masked)
            made = experts(*args, **kwargs)
            found.append(made.reshape(-1, made.shape[-1]))
        experts._parameters["down_proj"] = whole
        return found


def _let_through(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states


def _path_of_layers(arch: Architecture) -> str:
    if isinstance(arch, Derived):
        return arch.path
    return _weight(arch, "o").name.partition(".{layer}")[0]


def _weight(arch: Architecture, role: str) -> Weight:
    weight = arch.weight(role)
    if weight is None:
        raise UnsupportedModel(f"{arch.model_type} has no weight {role!r}")
    return weight


def _experts(module: torch.nn.Module) -> torch.nn.Module | None:
    for inner in module.modules():
        down = inner._parameters.get("down_proj")
        if down is not None and down.ndim == 3:
            return inner
    return None
