"""Reads a parsed config.json: sizes, activation and windows; refuses what is not supported.

Fields have the meaning that they have in Transformers 5, older names included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from skynet.architecture.router import Router
from skynet.errors import CheckpointError, UnsupportedModel, WireError
from skynet.wire.blocks import BlockFormat

Config = Mapping[str, Any]
MAX_SIZE, MAX_LAYERS = 2**28, 10_000  # far above any model's
ABSENT = "skynet_absent"  # in a settled config: the optional tensors that the file lacks
MODULES = "skynet_modules"  # of sentence-transformers: see `skynet.models.text_heads`
QUANTISED = "skynet_quantised"  # in a staged config: the formats of quantised tensors, by name

SPARSE = ("deepseek_v32", "deepseek_v4", "glm_moe_dsa")  # model types with sparse attention

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def block_formats(config: Config) -> dict[str, BlockFormat]:
    """The formats of the quantised tensors of a staged model, by canonical name.

    Raises:
        CheckpointError: a format that this version does not know.
    """
    written = config.get(QUANTISED) or {}
    try:
        formats = {name: BlockFormat.parse(name) for name in set(written.values())}
        return {tensor: formats[name] for tensor, name in written.items()}
    except (AttributeError, TypeError, WireError) as error:
        raise CheckpointError(
            f"config: {QUANTISED} cannot be read ({error}); split the model again"
        ) from None


def size(config: Config, field: str) -> int:
    """A positive integer of the config.

    Raises:
        CheckpointError: it is missing, or is not a positive integer.
    """
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json: {field} is {value!r:.40}, expected a positive integer; is this a "
            f"complete {config.get('model_type')} checkpoint?"
        )
    counts_layers = "layer" in field and "per_layer" not in field
    limit = MAX_LAYERS if counts_layers else MAX_SIZE
    if value > limit:
        raise CheckpointError(f"config.json: {field} is {value:.3g}, expected at most {limit}")
    return value


def head_dim(config: Config, hidden: str, heads: str) -> int:
    """The size of a head in a family whose heads divide the hidden size evenly.

    Raises:
        UnsupportedModel: they do not.
    """
    total, count = size(config, hidden), size(config, heads)
    if total % count:
        raise UnsupportedModel(f"{hidden}={total} is not a multiple of {heads}={count}")
    return total // count


def activation(config: Config, field: str) -> str:
    """The activation's name, one of `ACTIVATIONS`' values."""
    name = config[field]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModel(f"{field}={name!r} is not supported; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def cap(config: Config, field: str) -> float | None:
    """A soft cap: a positive number, or None.

    Raises:
        UnsupportedModel: anything else.
    """
    value = config.get(field)
    if value is None:
        return None
    if not isinstance(value, int | float) or value <= 0:
        raise UnsupportedModel(f"{field}={value!r} is not supported: expected more than 0")
    return float(value)


def experts(config: Config, field: str, sum_to_one: bool = True) -> dict[str, Any]:
    """The fields of an Architecture with a mixture of experts; `field` has the number of experts.

    Raises:
        CheckpointError: there are fewer experts than a token chooses.
    """
    count, chosen = size(config, field), size(config, "num_experts_per_tok")
    if chosen > count:
        raise CheckpointError(f"config.json: num_experts_per_tok is {chosen} of {field}={count}")
    return {
        "num_experts": count,
        "experts_per_token": chosen,
        "router": Router(sum_to_one=sum_to_one),
    }


def refuse(config: Config, **plain: Any) -> None:
    """Raise UnsupportedModel for each named field whose value is neither missing nor `plain`."""
    for field, value in plain.items():
        if config.get(field) not in (None, value):
            raise UnsupportedModel(
                f"{config.get('model_type')} with {field}={config[field]!r} is not supported, only "
                f"{field}={value!r}"
            )


def refuse_quantized(config: Config) -> None:
    """Raise UnsupportedModel for tensors quantised in a format that is not read.

    A checkpoint that is opened loses the `quantization_config` of a format that is.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedModel(
            f"quantization_config (quant_method={method!r}) is not supported; use the model in "
            "bfloat16 or float32, as GGUF, GPTQ or AWQ, or of compressed-tensors"
        )


def refuse_sparse_attention(config: Config) -> None:
    """Raise UnsupportedModel for models whose attention is sparse."""
    model_type = config.get("model_type")
    if model_type in SPARSE:
        raise UnsupportedModel(
            f"model_type {model_type!r} has sparse attention, not supported: an indexer chooses "
            "the tokens that a query sees"
        )


def window(config: Config) -> int:
    """The size of the sliding window where one is used."""
    value = config.get("sliding_window")
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"sliding_window={value!r} is not supported: expected 1 or more")
    return value


def windows_by_layer_type(config: Config) -> tuple[int | None, ...]:
    """Windows of a family with `use_sliding_window`, `max_window_layers` and `layer_types`."""
    count = size(config, "num_hidden_layers")
    sliding = config.get("use_sliding_window") and config.get("sliding_window") is not None
    types = config.get("layer_types")
    if types is None:
        first = cast(int, config["max_window_layers"]) if sliding else count
        types = ["full_attention"] * min(first, count)
        types += ["sliding_attention"] * (count - len(types))
    if "sliding_attention" in types and not sliding:
        raise UnsupportedModel("layer_types has sliding_attention, but no sliding_window is in use")
    return _windows(config, types)


def windows_by_pattern(config: Config) -> tuple[int | None, ...]:
    """Windows of a family that has them in all but every `sliding_window_pattern`-th layer."""
    types, pattern = config.get("layer_types"), size(config, "sliding_window_pattern")
    if types is None:
        types = [
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
            for layer in range(size(config, "num_hidden_layers"))
        ]
    return _windows(config, types)


def layer_types(
    config: Config, known: Sequence[str], default: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The type of each layer.

    Raises:
        UnsupportedModel: a type that is not `known`.
        CheckpointError: too few or too many, or none and no `default`.
    """
    types = config.get("layer_types") or default or ()
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise UnsupportedModel(f"layer_types {unknown} are not supported; known: {list(known)}")
    count = size(config, "num_hidden_layers")
    if len(types) != count:
        raise CheckpointError(f"config.json: {len(types)} layer_types for {count} layers")
    return tuple(types)


def _windows(config: Config, types: Sequence[str]) -> tuple[int | None, ...]:
    known = ("full_attention", "sliding_attention")
    types = layer_types({**config, "layer_types": list(types)}, known)
    return tuple(window(config) if kind == "sliding_attention" else None for kind in types)
