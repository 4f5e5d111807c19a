"""Every parameter of a traced model: a weight that is cut, or that is known to be whole."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from skynet.architecture.architecture import Cut, Unit
from skynet.architecture.ties import tie
from skynet.architecture.transformers_model import HeadsOf, Style, TransformersWeight
from skynet.errors import UnsupportedModel
from skynet.reference.library import stays_float32
from skynet.transformers_backend.file_names import FileNames
from skynet.transformers_backend.styles import EXPERTS, Styles
from skynet.transformers_backend.trace import AttentionCall, Trace
from skynet.transformers_backend.whole import is_norm, own_parameters, stored_buffers

CUTS: dict[Style, Cut] = {
    "column": "column",
    "row": "row",
    "gather": "column",
    "split": "row",
    "whole": "replicated",
}
SUMMED = ("row", "gather", "split")


class Parameters:
    """What the description says of the weights.

    path, inside: where the list of layers is, and attention in each; `heads` are those that come to
        the attention function of an uncut model.
    """

    def __init__(
        self, found: Trace, styles: Styles, path: str, inside: str, heads: AttentionCall
    ) -> None:
        """Raises UnsupportedModel, by name, for whatever is neither cut nor known to be whole."""
        self._found, self._styles, self._path = found, styles, path
        self._inside, self._heads, self._files = inside, heads, FileNames(found.model_type)
        self._counts = found.counts
        layers = found.model.get_submodule(path)
        by_layer = [self._layer(number) for number in range(len(layers))]
        inner = self._together(by_layer)
        self.num_experts = self._num_experts(layers)
        self.columns = self._columns(inner)
        for weight in inner:
            self._check_unit(weight, inner)
        self.heads_of = self._heads_of(inner)
        self.tied = bool(getattr(found.model.config, "tie_word_embeddings", False))
        self.weights = tie((*self._first(), *inner, *self._last()), self.tied)
        outside = [w for w in by_layer[-1] if w.cut == "column" and w.unit == "columns"]
        self.gated = sum(weight.sizes[0] for weight in outside) >= 2 * self.columns
        whole = self.heads_of == "whole"
        self.sums = [self._sums(weights) + whole for weights in by_layer]

    # -- inside of a layer ---------------------------------------------------------------------

    def _layer(self, number: int) -> list[TransformersWeight]:
        layer = self._found.model.get_submodule(f"{self._path}.{number}")
        weights = []
        for role, module in layer.named_modules():
            path = f"{self._path}.{number}.{role}".removesuffix(".")
            style = self._styles.of(path)
            if style == "experts":
                weights += self._experts(path, role, module)
            elif style is not None and style != "whole":
                weights.append(self._product(path, role, module, style))
            else:
                weights += self._whole(role, module)
        return weights

    def _product(self, path: str, role: str, module: nn.Module, style: Style) -> TransformersWeight:
        """A module that the plan cuts."""
        if type(module) is not nn.Linear:
            raise self._found.refusal(path, f"is cut by the plan ({style}), but is no plain Linear")
        self._check_called(path)
        unit: Unit = "columns"
        if self._in_attention(role) and style != "gather":
            unit = self._heads_unit(path, module, style)
        return TransformersWeight(
            role=role,
            name=self._name(role),
            cut=CUTS[style],
            unit=unit,
            bias=module.bias is not None,
            sizes=tuple(module.weight.shape),
            style=style,
        )

    def _experts(self, path: str, role: str, module: nn.Module) -> list[TransformersWeight]:
        """The matrices of all experts, whose parameters hold them one above the other."""
        own, names = own_parameters(module), EXPERTS
        shapes = [tuple(own[name].shape) for name in names if name in own]
        if own.keys() != set(names) or not self._styles.are_experts(path):
            raise self._found.refusal(path, f"has experts of {sorted(own)}, not of {list(names)}")
        (count, rows, inputs), (same, outputs, columns) = shapes
        if (count, rows, inputs) != (same, 2 * columns, outputs):
            raise self._found.refusal(path, f"has experts of shapes {shapes}")
        self._check_called(path)
        found = []
        for parameter, sizes in zip(names, ((columns, inputs), (outputs, columns)), strict=True):
            of_file = self._files.of_experts(f"{self._path}.{{layer}}.{role}.{parameter}")
            if len(of_file) * sizes[0] != own[parameter].shape[1]:
                raise self._found.refusal(path, f"has {parameter} made of {list(of_file)}")
            found += [
                TransformersWeight(
                    role=f"{role}.{parameter}:{number}",
                    name=name.removesuffix(".weight"),
                    cut="row" if parameter == names[1] else "column",
                    unit="columns",
                    sizes=sizes,
                    style="experts",
                    parameter=f"{role}.{parameter}",
                )
                for number, name in enumerate(of_file)
            ]
        return found

    def _check_called(self, path: str) -> None:
        """What is summed once has to be asked for once."""
        if self._counts[path] != 1:
            raise self._found.refusal(path, f"is called {self._counts[path]} times in a step")

    def _heads_unit(self, path: str, module: nn.Linear, style: Style) -> Unit:
        heads = self._heads
        units: dict[int, Unit] = {heads.num_heads * heads.head_dim: "heads"}
        size = module.in_features
        if style == "column":  # a KV head that shards share may be made twice, but not summed twice
            units.setdefault(heads.num_kv_heads * heads.head_dim, "kv_heads")
            size = module.out_features
        if size not in units:
            raise self._found.refusal(
                path,
                f"is cut by the plan, but {size} is not what {heads.num_heads} heads, or "
                f"{heads.num_kv_heads} KV heads, of {heads.head_dim} make",
            )
        return units[size]

    def _whole(self, role: str, module: nn.Module) -> list[TransformersWeight]:
        """Parameters of a module that is the same on every shard."""
        own, found = dict[str, torch.Tensor](own_parameters(module)), []
        buffers = stored_buffers(module)
        if "weight" in own and own.keys() <= {"weight", "bias"}:
            value, bias = own["weight"], "bias" in own
            weight = _replicated(role, self._name(role), tuple(value.shape), bias)
            found.append(replace(weight, float32=self._stays_float32(f"{role}.weight", value)))
            own = {}
        for kind, value in {**own, **buffers}.items():
            inside = f"{role}.{kind}"
            name = self._files.of(f"{self._path}.{{layer}}.{inside}")
            weight = _replicated(inside, name, tuple(value.shape), bare=True)
            stays = self._stays_float32(inside, value)
            found.append(replace(weight, buffer=kind in buffers, float32=stays))
        return found

    def _stays_float32(self, inside: str, value: torch.Tensor) -> bool:
        """As Transformers has it in a model that is loaded in bfloat16, as the traced one is."""
        return value.dtype == torch.float32 or stays_float32(self._found.model, inside)

    def _name(self, role: str) -> str:
        """What files call a module that has a weight."""
        return self._files.of(f"{self._path}.{{layer}}.{role}.weight").removesuffix(".weight")

    def _in_attention(self, role: str) -> bool:
        return role.startswith(f"{self._inside}.")

    def _together(self, by_layer: list[list[TransformersWeight]]) -> list[TransformersWeight]:
        """The weights of all layers, each once; some are in some layers only."""
        places: dict[TransformersWeight, list[int]] = {}
        for number, weights in enumerate(by_layer):
            for weight in weights:
                places.setdefault(weight, []).append(number)
        roles = [weight.role for weight in places]
        for weight, numbers in places.items():
            if roles.count(weight.role) > 1:
                raise self._found.refusal(
                    f"{self._path}.{numbers[0]}", f"has {weight.role} unlike that of another layer"
                )
        return [
            weight if len(numbers) == len(by_layer) else replace(weight, layers=tuple(numbers))
            for weight, numbers in places.items()
        ]

    def _num_experts(self, layers: nn.Module) -> int:
        counts = {
            len(module._parameters[EXPERTS[1]])
            for path, module in layers.named_modules(prefix=self._path)
            if self._styles.of(path) == "experts"
        }
        if len(counts) > 1:
            raise self._found.refusal(self._path, f"has layers of {sorted(counts)} experts")
        return counts.pop() if counts else 0

    def _columns(self, weights: list[TransformersWeight]) -> int:
        """The columns that are shared out: what summed products of the MLP take in, the fewest.

        Products over more, as of experts that all tokens have, are cut in proportion.
        """
        found = {w.sizes[1] for w in weights if w.cut == "row" and w.unit == "columns"}
        config = self._found.model.config
        return min(found) if found else int(getattr(config, "intermediate_size", 0) or 1)

    def _check_unit(self, weight: TransformersWeight, weights: list[TransformersWeight]) -> None:
        """What stays a shard's must be what the summed product beside it takes in."""
        if weight.unit != "columns" or weight.cut != "column" or weight.style == "gather":
            return
        above = _above(weight)
        beside = {
            other.sizes[1]
            for other in weights
            if other.cut == "row" and other.unit == "columns" and _above(other) == above
        }
        if beside != {weight.sizes[0]}:
            raise self._found.refusal(
                f"{self._path}.{min(weight.layers, default=0)}.{weight.role.partition(':')[0]}",
                f"makes {weight.sizes[0]} columns, of which summed products beside it take in "
                f"{sorted(beside) or 'none'}",
            )

    def _sums(self, weights: list[TransformersWeight]) -> int:
        """Of one layer, without that of attention that all shards have whole."""
        experts = {_above(weight) for weight in weights if weight.style == "experts"}
        return sum(weight.style in SUMMED for weight in weights) + len(experts)

    def _heads_of(self, weights: list[TransformersWeight]) -> HeadsOf:
        styles = {w.style for w in weights if self._in_attention(w.role)} - {"whole"}
        ways: dict[frozenset[Style], HeadsOf] = {
            frozenset({"column", "row"}): "local",
            frozenset({"gather", "split"}): "gathered",
            frozenset(): "whole",
        }
        if frozenset(styles) not in ways:
            raise self._found.refusal(
                f"{self._path}.0.{self._inside}",
                f"is cut in a way that is not computed: {sorted(styles)}",
            )
        return ways[frozenset(styles)]

    # -- the ends ------------------------------------------------------------------------------

    def _first(self) -> list[TransformersWeight]:
        embedding = self._found.model.get_input_embeddings()
        path = self._found.paths[id(embedding)]
        for table in self._styles.tables:
            if table != path:
                raise self._found.refusal("", f"cuts a table, {table}, that is not the tokens'")
        sizes = tuple(embedding.weight.shape)
        self._ends = {path}
        return [TransformersWeight("embed", path, "vocab", "vocab", sizes=sizes, style="gather")]

    def _last(self) -> list[TransformersWeight]:
        model = self._found.model
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise UnsupportedModel(
                f"model_type {self._found.model_type!r} has a {type(head).__name__} for a head, "
                "not a plain Linear"
            )
        path, table = self._found.paths[id(head)], model.get_input_embeddings().weight
        if head.weight.shape != table.shape:
            raise self._found.refusal(
                path, f"is {list(head.weight.shape)}, and the embedding {list(table.shape)}"
            )
        self._ends.add(path)
        sizes, bias = tuple(head.weight.shape), head.bias is not None
        if self.tied and bias:
            raise self._found.refusal(path, "is tied to the embedding, and has a bias")
        head_weight = TransformersWeight("head", path, "vocab", "vocab", bias, sizes=sizes)
        return [*self._norm(), head_weight]

    def _norm(self) -> list[TransformersWeight]:
        """The last norm, if it has weights: no other module outside of the layers may."""
        outside = [
            (path, module)
            for path, module in self._found.model.named_modules()
            if own_parameters(module)
            and not path.startswith(f"{self._path}.")
            and path not in self._ends
        ]
        weights: list[TransformersWeight] = []
        for path, module in outside:
            own = own_parameters(module)
            plain = is_norm(module) and "weight" in own and own.keys() <= {"weight", "bias"}
            if weights or not plain or not self._is_after_layers(path):
                raise self._found.refusal(
                    path, "has parameters, and is neither in a layer nor embedding, norm or head"
                )
            sizes = tuple(own["weight"].shape)
            weights.append(_replicated("final_norm", path, sizes, bias="bias" in own))
        return weights

    def _is_after_layers(self, path: str) -> bool:
        called = self._found.called
        last = called.index(self._found.calls[-1].path)
        return called.count(path) == 1 and called.index(path) > last


def _replicated(
    role: str, name: str, sizes: tuple[int, ...], bias: bool = False, bare: bool = False
) -> TransformersWeight:
    return TransformersWeight(role, name, "replicated", "hidden", bias, sizes=sizes, bare=bare)


def _above(weight: TransformersWeight) -> str:
    return weight.role.rpartition(".")[0]
