"""A model on the Transformers backend, as data: its weights, cut by Transformers' plan.

The description is made where the checkpoint is (skynet/transformers_backend/) and staged in the
config, under `KEY`. Processes without Transformers read it here: clients, orchestrator, planning.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from skynet.architecture.architecture import Architecture
from skynet.architecture.config import ABSENT, Config
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError

KEY = "skynet_derived"

# How a module is computed. column: the outputs stay on the shard; row: the products are summed;
# gather: the shards' outputs are concatenated; split: each shard takes its part of the inputs, and
# the products are summed; whole: every shard computes all of it; experts: a shard has columns of
# every expert, and the outputs of the experts are summed over the shards.
Style = Literal["column", "row", "gather", "split", "whole", "experts"]
# The heads that the attention function is given, and those that it returns. local: the shard's,
# and the same. gathered: all, and the shard's. whole: all, and all after a sum.
HeadsOf = Literal["local", "gathered", "whole"]


@dataclass(frozen=True)
class TransformersWeight(Weight):
    """A parameter of Transformers' model; `role` is the path of its module in a layer.

    The unit `columns` is cut in proportion to the plan's columns.
    """

    sizes: tuple[int, ...] = ()  # of the whole tensor in the checkpoint
    style: Style = "whole"
    buffer: bool = False  # a buffer of its module, not a parameter
    parameter: str = ""  # of experts: its path in a layer; several weights are parts of it
    layers: tuple[int, ...] = ()  # the layers that have it; (): all

    def is_in(self, layer: int | None) -> bool:
        return layer is None or not self.layers or layer in self.layers


@dataclass(frozen=True)
class TransformersArchitecture(Architecture):
    """An architecture whose layers are Transformers' modules."""

    config: str = "{}"  # config.json, from which Transformers builds the modules
    transformers: str = ""  # the version that was described
    path: str = ""  # of the module that lists the layers
    attention: str = ""  # path of attention in a layer
    heads_of: HeadsOf = "local"
    sums: tuple[int, ...] = ()  # all-reduces of each layer
    samples: tuple[int, ...] = ()  # one layer of each kind

    @property
    def sides(self) -> tuple[tuple[str, ...], ...]:
        """None: roles are paths of modules."""
        return ()

    @property
    def sums_per_layer(self) -> int:
        """The maximum over the layers."""
        return max(self.sums)

    def first_sum(self, layer: int) -> int:
        return sum(self.sums[:layer]) + (layer > 0)

    @property
    def notice(self) -> str:
        """The warning when the model is split, loaded or checked."""
        text = (
            f"model_type {self.model_type!r} has no file: running Transformers' layers, cut by "
            "its tensor-parallel plan; slower"
        )
        if self.heads_of == "whole":
            text += ". The plan does not cut attention: every shard has all its weights"
        return text

    def weights_of(self, layer: int) -> tuple[TransformersWeight, ...]:
        """The weights that a layer has."""
        weights = cast(tuple[TransformersWeight, ...], self.weights)
        return tuple(weight for weight in weights if weight.per_layer and weight.is_in(layer))

    def module_names(self) -> dict[str, str]:
        """Transformers' name of a parameter in a layer -> its canonical name; without experts."""
        names = {}
        for weight in cast(tuple[TransformersWeight, ...], self.weights):
            if weight.per_layer and not weight.in_pieces:
                for layer in filter(weight.is_in, range(self.num_layers)):
                    for kind in ("weight", "bias") if weight.bias else ("weight",):
                        inside = weight.role if weight.bare else f"{weight.role}.{kind}"
                        names[f"{self.path}.{layer}.{inside}"] = weight.tensor(layer, kind)
        return names

    def experts_of(self, name: str) -> list[list[str]]:
        """The canonical names of each expert's matrices in a parameter of experts, from the top.

        name: Transformers' name of the parameter. Empty for a parameter that is not of experts.
        """
        layer, _, inside = name.removeprefix(f"{self.path}.").partition(".")
        weights = cast(tuple[TransformersWeight, ...], self.weights)
        parts = [weight for weight in weights if inside and weight.parameter == inside]
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


# Fields of `TransformersArchitecture` in the description; others are the same for all models.
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
    """The description, as JSON; `described` are all the fields of `_DESCRIBED`."""
    wrong = set(_DESCRIBED) ^ described.keys()
    if wrong:
        raise KeyError(f"a description has {sorted(_DESCRIBED)}; missing or unknown: {wrong}")
    plain = [{name: asdict(weight)[name] for name in _WEIGHT} for weight in weights]
    description: dict[str, Any] = json.loads(json.dumps({**described, "weights": plain}))
    return description


def read(config: Config) -> TransformersArchitecture:
    """The architecture of a config with a description under `KEY`.

    Raises:
        CheckpointError: the description is of another version of SkyNet.
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
            f"config: {KEY} is of another version of SkyNet ({error!r}); split the model again"
        ) from error
    of_checkpoint = {name: value for name, value in config.items() if name not in (KEY, ABSENT)}
    return TransformersArchitecture(
        model_type=str(config.get("model_type")),
        norm="rms",
        norm_eps=0.0,
        activation="",
        ropes=(None,) * given["num_layers"],
        learned_positions=False,
        attention_scale=1.0,
        weights=weights,
        config=json.dumps(of_checkpoint),
        **given,
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
