"""Modules that every shard has whole: parameters that no plan cuts, and why that is right."""

from __future__ import annotations

import torch
from torch import nn

from skynet.transformers_backend.styles import Styles
from skynet.transformers_backend.trace import Trace


def check_known(trace: Trace, styles: Styles) -> None:
    """Raise UnsupportedModel for a parameter that is neither cut nor known to be whole."""
    outer = (trace.model.get_input_embeddings(), trace.model.get_output_embeddings())
    mixtures = _mixtures(trace, styles)
    for path, module in trace.model.named_modules():
        parameters = direct_parameters(module)
        is_cut = styles.of(path) is not None or any(module is other for other in outer)
        if is_cut or not parameters or _is_known_whole(module) or _is_in(path, mixtures):
            continue
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in parameters.items())
        raise trace.refusal(
            path,
            f"has parameters ({shapes}) that Transformers' tensor-parallel plan does not cut and "
            "that are not known to be the same on every shard",
        )


def _mixtures(trace: Trace, styles: Styles) -> set[str]:
    """Modules that contain experts: their other parameters route, or are whole on every shard."""
    paths = (path for path, _ in trace.model.named_modules())
    return {path.rpartition(".")[0] for path in paths if styles.of(path) == "experts"}


def _is_in(path: str, modules: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts) + 1))


def is_norm(module: nn.Module) -> bool:
    """By the name of its class: most families define one."""
    return "Norm" in type(module).__name__


def stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Vectors of floats that checkpoints hold; scalars are computed by the model."""
    return {
        name: value
        for name, value in module._buffers.items()
        if value is not None
        and value.ndim
        and value.is_floating_point()
        and name not in module._non_persistent_buffers_set
    }


def direct_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the module itself, without those of its submodules."""
    return {name: value for name, value in module._parameters.items() if value is not None}


def _is_known_whole(module: nn.Module) -> bool:
    """A norm, an uncut product, or an activation with scalar parameters."""
    parameters = direct_parameters(module).values()
    is_activation = "Activation" in type(module).__name__
    are_scalars = all(value.numel() == 1 and value.ndim for value in parameters)
    return is_norm(module) or type(module) is nn.Linear or (is_activation and are_scalars)
