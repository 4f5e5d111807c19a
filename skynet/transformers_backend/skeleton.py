"""Transformers' model of a config, on the meta device: weights are placed into it later.

Runs only code of the installed Transformers, never code that comes with a checkpoint.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from skynet.architecture.config import Config
from skynet.errors import UnsupportedModel
from skynet.models.registry import KNOWN
from skynet.reference.library import quiet


def transformers_version() -> str:
    return version("transformers")


def config_class(config: Config) -> Any:
    """Transformers' config class of a model_type.

    Raises:
        UnsupportedModel: Transformers has none.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = config.get("model_type")
    try:
        return CONFIG_MAPPING[name]
    except KeyError as error:
        remote = "; code that comes with a checkpoint is never run" if "auto_map" in config else ""
        raise UnsupportedModel(
            f"model_type {name!r} has no file in SkyNet, and Transformers {transformers_version()} "
            f"does not know it{remote}. With a file: {', '.join(KNOWN)}"
        ) from error


def build(config: Config, attention: str, dtype: torch.dtype, *, buffers: bool) -> Any:
    """The model with a language head, without weights, ready to be evaluated.

    attention: the name of an attention function registered with Transformers.
    buffers: whether buffers, such as rope frequencies, are computed.

    Raises:
        UnsupportedModel: Transformers cannot build the model; has its error.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config_type = config_class(config)
    plain = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    # The grouped kernel takes only sizes that are multiples of 8.
    eager = {"experts_implementation": "eager"} if _has_experts(config) else {}
    empty = init_empty_weights(include_buffers=False) if buffers else torch.device("meta")
    try:
        with quiet(), empty:
            return AutoModelForCausalLM.from_config(
                config_type.from_dict({**config, **plain}),
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                **eager,
            ).eval()
    except Exception as error:  # models raise errors of any class
        raise UnsupportedModel(
            f"Transformers cannot make a {config.get('model_type')} model of config.json: {error}"
        ) from error


def _has_experts(config: Config) -> bool:
    plan = getattr(config_class(config), "base_model_tp_plan", None) or {}
    return "moe_tp_experts" in plan.values()
