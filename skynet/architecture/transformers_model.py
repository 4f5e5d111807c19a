"""A family without a file, as data: what Transformers' tensor-parallel plan says of its weights.

The description is made where the checkpoint is (skynet/transformers_backend/), lies under `KEY` in
the config that is staged, and is read here by processes that have no Transformers: clients,
orchestrator, planning.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.config import ABSENT, Config
from skynet.errors import CheckpointError

KEY = "skynet_derived"

# What becomes of a module's product. column: stays this shard's; row: is summed; gather: the
# shards' outputs are put together; split: the shard takes its part of inputs that all have, and the
# products are summed; whole: every shard has all of it; experts: a part of a parameter of several
# experts, whose sum over the shards is that of what they give together.
Style = Literal["column", "row", "gather", "split", "whole", "experts"]
# The heads that come to the attention function, and those that leave it. local: the shard's, both.
# gathered: all come, the shard's leave. whole: all come, and all leave after a sum.
HeadsOf = Literal["local", "gathered", "whole"]


@dataclass(frozen=True)
class TransformersWeight(Weight):
    """A parameter of Transformers' model; `role` is its module's path inside of a layer.

    `columns` that are as many as the MLP has are cut as the MLP is; more or fewer, in proportion.
    """

    sizes: tuple[int, ...] = ()  # of the whole tensor, as it lies in the checkpoint
    style: Style = "whole"
    bare: bool = False  # the parameter has a name of its own, neither weight nor bias
    buffer: bool = False  # Transformers has it as a buffer
    float32: bool = False  # whatever the plan computes in
    parameter: str = ""  # of experts: its path inside of a layer; several weights lie in it
    layers: tuple[int, ...] = ()  # that have it, where not all have

    def is_in(self, layer: int | None) -> bool:
        return layer is None or not self.layers or layer in self.layers

    def tensor(
        self, layer: int | None = None, kind: str = "weight", piece: int | None = None
    ) -> str:
        if self.bare:
            return self.name.format(layer=layer)
        return super().tensor(layer, kind, piece)


@dataclass(frozen=True)
class TransformersArchitecture(Architecture):
    """An architecture whose layers are Transformers' own."""

    config: str = "{}"  # config.json, which Transformers makes the modules of
    transformers: str = ""  # the version whose modules were described
    path: str = ""  # of the module that lists the layers
    attention: str = ""  # where attention is in a layer
    heads_of: HeadsOf = "local"
    sums: tuple[int, ...] = ()  # of each layer
    samples: tuple[int, ...] = ()  # a layer of each kind there is

    @property
    def sums_per_layer(self) -> int:
        """The most that there are in a layer."""
        return max(self.sums)

    def first_sum(self, layer: int) -> int:
        return sum(self.sums[:layer]) + (layer > 0)

    @property
    def notice(self) -> str:
        """What people are told when such a model is split, loaded or checked."""
        said = (
            f"model_type {self.model_type!r} has no file: running Transformers' own layers, cut by "
            "its tensor-parallel plan; slower"
        )
        if self.heads_of == "whole":
            said += ". The plan does not cut attention: every shard has all its weights"
        return said

    def weights_of(self, layer: int) -> tuple[TransformersWeight, ...]:
        """The weights that a layer has."""
        weights = cast(tuple[TransformersWeight, ...], self.weights)
        return tuple(weight for weight in weights if weight.per_layer and weight.is_in(layer))

    def module_names(self) -> dict[str, str]:
        """Transformers' name of each parameter in a layer -> the canonical one; not experts'."""
        found = {}
        for weight in cast(tuple[TransformersWeight, ...], self.weights):
            if weight.per_layer and not weight.in_pieces:
                for layer in filter(weight.is_in, range(self.num_layers)):
                    for kind in ("weight", "bias") if weight.bias else ("weight",):
                        own = weight.role if weight.bare else f"{weight.role}.{kind}"
                        found[f"{self.path}.{layer}.{own}"] = weight.tensor(layer, kind)
        return found

    def experts_of(self, name: str) -> list[list[str]]:
        """Of Transformers' name of a parameter of experts, the canonical names by expert.

        Each expert's matrices lie one above the other. Empty of other parameters.
        """
        layer, _, own = name.removeprefix(f"{self.path}.").partition(".")
        weights = cast(tuple[TransformersWeight, ...], self.weights)
        parts = [weight for weight in weights if own and weight.parameter == own]
        return [
            [weight.tensor(int(layer), piece=expert) for weight in parts]
            for expert in range(self.num_experts if parts else 0)
        ]

    def inputs(self, weight: Weight) -> int | None:
        shape = self.shape(weight)
        return shape[1] if len(shape) > 1 else None

    def outputs(self, weight: Weight) -> int:
        return self.shape(weight)[0]

    def shape(self, weight: Weight) -> tuple[int, ...]:
        return cast(TransformersWeight, weight).sizes

    def bias_size(self, weight: Weight) -> int:
        return self.shape(weight)[0]


# Fields of `Derived` that lie in the description; others are the same for all.
_DESCRIBED = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_positions",
    "gated",
    "windows",
    "prefixes",
    "transformers",
    "path",
    "attention",
    "heads_of",
    "sums",
    "samples",
    "num_experts",
)
_WEIGHT = (
    "role",
    "name",
    "cut",
    "unit",
    "bias",
    "others",
    "optional",
    "sizes",
    "style",
    "bare",
    "buffer",
    "float32",
    "parameter",
    "layers",
)


def describe(weights: tuple[TransformersWeight, ...], **described: Any) -> dict[str, Any]:
    """The description, as JSON has it; `described` are the fields of `_DESCRIBED`, all of them."""
    lacking = set(_DESCRIBED) ^ described.keys()
    if lacking:
        raise KeyError(f"a description has {sorted(_DESCRIBED)}; lacking or unknown: {lacking}")
    plain = [{name: asdict(weight)[name] for name in _WEIGHT} for weight in weights]
    found: dict[str, Any] = json.loads(json.dumps({**described, "weights": plain}))
    return found


def read(config: Config) -> TransformersArchitecture:
    """The architecture that a config with a description under `KEY` describes.

    Raises:
        CheckpointError: the description is not one of this version.
    """
    described: dict[str, Any] = config[KEY]
    try:
        given = {name: _tuple(described[name]) for name in _DESCRIBED}
        weights = tuple(
            TransformersWeight(**{name: _tuple(weight[name]) for name in _WEIGHT})
            for weight in described["weights"]
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"config: {KEY} is no description of this version ({error!r}); split the model again"
        ) from error
    own = {name: value for name, value in config.items() if name not in (KEY, ABSENT)}
    return TransformersArchitecture(
        model_type=str(config.get("model_type")),
        norm="rms",
        norm_eps=0.0,
        activation="",
        ropes=(None,) * given["num_layers"],
        learned_positions=False,
        attention_scale=1.0,
        weights=weights,
        config=json.dumps(own),
        **given,
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
