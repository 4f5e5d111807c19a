"""What every shard has all of: modules whose parameters no plan cuts, and why that is right."""

from __future__ import annotations

import torch
from torch import nn

from skynet.transformers_backend.styles import Styles
from skynet.transformers_backend.trace import Trace


def check_known(found: Trace, styles: Styles) -> None:
    """Raise UnsupportedModel for a parameter that is neither cut nor known to be whole."""
    ends = (found.model.get_input_embeddings(), found.model.get_output_embeddings())
    blocks = _blocks_of_experts(found, styles)
    for path, module in found.model.named_modules():
        is_cut = styles.of(path) is not None or any(module is end for end in ends)
        if is_cut or not own_parameters(module) or _is_known_whole(module) or _is_in(path, blocks):
            continue
        shapes = ", ".join(
            f"{name} {list(value.shape)}" for name, value in own_parameters(module).items()
        )
        raise found.refusal(
            path,
            f"has parameters ({shapes}) that Transformers' tensor-parallel plan does not cut and "
            "that are not known to be the same on every shard",
        )


def _blocks_of_experts(found: Trace, styles: Styles) -> set[str]:
    """Modules that have experts: what else is in them routes, or is computed by all shards."""
    paths = (path for path, _ in found.model.named_modules())
    return {path.rpartition(".")[0] for path in paths if styles.of(path) == "experts"}


def _is_in(path: str, blocks: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in blocks for count in range(1, len(parts) + 1))


def is_norm(module: nn.Module) -> bool:
    """By its class: Transformers has a norm of its own in most families."""
    return "Norm" in type(module).__name__


def stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers of numbers that checkpoints hold; single ones are the model's own to make."""
    return {
        name: value
        for name, value in module._buffers.items()
        if value is not None
        and value.ndim
        and value.is_floating_point()
        and name not in module._non_persistent_buffers_set
    }


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Of the module itself, not of those within."""
    return {name: value for name, value in module._parameters.items() if value is not None}


def _is_known_whole(module: nn.Module) -> bool:
    """A norm, an uncut product, or an activation with numbers of its own."""
    own = own_parameters(module).values()
    is_activation = "Activation" in type(module).__name__
    are_numbers = all(value.numel() == 1 and value.ndim for value in own)
    return is_norm(module) or type(module) is nn.Linear or (is_activation and are_numbers)
