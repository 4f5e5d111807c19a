"""The formats of quantised weights that are read, by the `quant_method` of a config.json."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from skynet.checkpoint.formats import awq, compressed_tensors, fp8, gptq, mxfp4, split
from skynet.checkpoint.formats.matrix import Matrix
from skynet.checkpoint.formats.parts import Settings, Tensors
from skynet.errors import CheckpointError
from skynet.wire.quantised import Layout

logger = logging.getLogger(__name__)

FIELD = "quantization_config"
METHODS: dict[str, Callable[[Settings, Tensors], dict[str, Matrix]]] = {
    "awq": awq.matrices,
    "compressed-tensors": compressed_tensors.matrices,
    "fbgemm_fp8": fp8.matrices,
    "fp8": fp8.matrices,
    "gptq": gptq.matrices,
    "mxfp4": mxfp4.matrices,
}


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the config's quantised weights are of a format that is read."""
    return _method(config) in METHODS


def published_layout(config: Mapping[str, Any]) -> Layout | None:
    """The layout of most matrices, by the config alone; None: numbers, or an unknown format."""
    if not is_known(config):
        return None
    settings = config[FIELD]
    groups = settings.get("config_groups") or {}
    schemes = [group.get("weights") or {} for group in groups.values()] or [settings]
    bits = {scheme.get("num_bits", scheme.get("bits", 8)) for scheme in schemes}
    return "q4" if bits == {4} else "q8"


def quantised_matrices(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Matrix]:
    """The quantised matrices of a checkpoint, by the name of the weight.

    Logs which of them are rounded.

    Raises:
        UnsupportedModel: a setting of the format that is not supported.
        CheckpointError: the tensors of a matrix do not belong together.
    """
    found = split.matrices(tensors)
    method = _method(config)
    if method in METHODS:
        found |= METHODS[method](config[FIELD], tensors)
        if not found:
            raise CheckpointError(
                f"config.json: quant_method {method!r}, but no tensor is of that format; is a file "
                "of the checkpoint missing?"
            )
    warn_of_rounding(matrix.rounded for matrix in found.values())
    return found


def warn_of_rounding(reasons: Any) -> None:
    """Log how many matrices of which kinds are not staged exactly as they are. "": it is."""
    counts = Counter(reason for reason in reasons if reason)
    if counts:
        shown = ", ".join(f"{count} of {reason}" for reason, count in counts.most_common())
        logger.warning(
            "matrices that q8 and q4 cannot hold exactly are rounded to q8: %s. Answers may differ "
            "from those of Transformers as much as by that",
            shown,
        )


def _method(config: Mapping[str, Any]) -> str:
    settings = config.get(FIELD)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return method if isinstance(method, str) else ""
