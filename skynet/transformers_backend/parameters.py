"""All weights of a traced model, and the sizes that they have in common."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from skynet.architecture.ties import tie
from skynet.architecture.transformers_model import HeadsOf, Style, TransformersWeight
from skynet.transformers_backend.layer_weights import AttentionPlace, LayerWeights
from skynet.transformers_backend.outer_weights import embedding_weight, head_weight, norm_weights
from skynet.transformers_backend.styles import EXPERTS, Styles
from skynet.transformers_backend.trace import Trace

SUMMED = ("row", "gather", "split")


class Parameters:
    """The weights as the description has them."""

    def __init__(self, trace: Trace, styles: Styles, attention: AttentionPlace) -> None:
        """Raises UnsupportedModel for a weight that is neither cut nor known to be whole."""
        self._trace, self._styles, self._attention = trace, styles, attention
        self._path = attention.path
        layers, of_layer = (
            trace.model.get_submodule(self._path),
            LayerWeights(trace, styles, attention),
        )
        by_layer = [of_layer.of(number) for number in range(len(layers))]
        inner = self._merged(by_layer)
        self.num_experts = self._num_experts(layers)
        self.columns = self._columns(inner)
        for weight in inner:
            self._check_unit(weight, inner)
        self.heads_of = self._heads_of(inner)
        self.tied = bool(getattr(trace.model.config, "tie_word_embeddings", False))
        embed, head = embedding_weight(trace, styles), head_weight(trace, self.tied)
        norm = norm_weights(trace, self._path, {embed.name, head.name})
        self.weights = tie((embed, *inner, *norm, head), self.tied)
        column = [w for w in by_layer[-1] if w.cut == "column" and w.unit == "columns"]
        self.gated = sum(weight.sizes[0] for weight in column) >= 2 * self.columns
        whole = self.heads_of == "whole"
        self.sums = [_sums(weights) + whole for weights in by_layer]

    def _merged(self, by_layer: list[list[TransformersWeight]]) -> list[TransformersWeight]:
        """The weights of all layers, each once; some are in some layers only."""
        numbers_of: dict[TransformersWeight, list[int]] = {}
        for number, weights in enumerate(by_layer):
            for weight in weights:
                numbers_of.setdefault(weight, []).append(number)
        roles = [weight.role for weight in numbers_of]
        for weight, numbers in numbers_of.items():
            if roles.count(weight.role) > 1:
                raise self._trace.refusal(
                    f"{self._path}.{numbers[0]}", f"has {weight.role} unlike that of another layer"
                )
        return [
            weight if len(numbers) == len(by_layer) else replace(weight, layers=tuple(numbers))
            for weight, numbers in numbers_of.items()
        ]

    def _num_experts(self, layers: nn.Module) -> int:
        counts = {
            len(module._parameters[EXPERTS[1]])
            for path, module in layers.named_modules(prefix=self._path)
            if self._styles.of(path) == "experts"
        }
        if len(counts) > 1:
            raise self._trace.refusal(self._path, f"has layers of {sorted(counts)} experts")
        return counts.pop() if counts else 0

    def _columns(self, weights: list[TransformersWeight]) -> int:
        """The MLP columns that the plan divides: the fewest inputs of a summed MLP product.

        Products with more inputs, as of experts that all tokens have, are cut in proportion.
        """
        inputs = {w.sizes[1] for w in weights if w.cut == "row" and w.unit == "columns"}
        config = self._trace.model.config
        return min(inputs) if inputs else int(getattr(config, "intermediate_size", 0) or 1)

    def _check_unit(self, weight: TransformersWeight, weights: list[TransformersWeight]) -> None:
        """The outputs that stay on a shard must be the inputs of the summed product beside it."""
        if weight.unit != "columns" or weight.cut != "column" or weight.style == "gather":
            return
        parent = _parent(weight)
        inputs = {
            other.sizes[1]
            for other in weights
            if other.cut == "row" and other.unit == "columns" and _parent(other) == parent
        }
        if inputs != {weight.sizes[0]}:
            raise self._trace.refusal(
                f"{self._path}.{min(weight.layers, default=0)}.{weight.role.partition(':')[0]}",
                f"makes {weight.sizes[0]} columns, of which summed products beside it take in "
                f"{sorted(inputs) or 'none'}",
            )

    def _heads_of(self, weights: list[TransformersWeight]) -> HeadsOf:
        styles = {w.style for w in weights if self._attention.contains(w.role)} - {"whole"}
        ways: dict[frozenset[Style], HeadsOf] = {
            frozenset({"column", "row"}): "local",
            frozenset({"gather", "split"}): "gathered",
            frozenset(): "whole",
        }
        if frozenset(styles) not in ways:
            raise self._trace.refusal(
                f"{self._path}.0.{self._attention.inside}",
                f"is cut in a way that is not supported: {sorted(styles)}",
            )
        return ways[frozenset(styles)]


def _sums(weights: list[TransformersWeight]) -> int:
    """All-reduces in one layer, without that of attention that is whole on every shard."""
    experts = {_parent(weight) for weight in weights if weight.style == "experts"}
    return sum(weight.style in SUMMED for weight in weights) + len(experts)


def _parent(weight: TransformersWeight) -> str:
    return weight.role.rpartition(".")[0]
