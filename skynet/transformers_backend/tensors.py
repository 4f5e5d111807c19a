"""Checks that a checkpoint has the tensors of Transformers' model, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from skynet.architecture.tensors import resolve_names
from skynet.architecture.transformers_model import TransformersArchitecture
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.transformers_backend.attention import register_attention
from skynet.transformers_backend.file_names import FileNames
from skynet.transformers_backend.skeleton import build

SHOWN = 3


def check_tensors(checkpoint: Checkpoint, arch: TransformersArchitecture) -> None:
    """Raise UnsupportedModel for other tensors, by name; CheckpointError for missing ones."""
    names = _names(checkpoint, arch)
    known = set(names.values())
    model = build(json.loads(arch.config), register_attention(), torch.float32, buffers=True)
    buffers = _stored_buffers(model)
    left = {name for name in checkpoint.tensors if name not in known}
    for name in sorted(left & buffers.keys()):
        _check_buffer(checkpoint, arch, name, buffers[name])
    unread = sorted(name for name in left - buffers.keys() if not _is_ignored(model, arch, name))
    if unread:
        shown = ", ".join(unread[:SHOWN]) + (", ..." if len(unread) > SHOWN else "")
        raise UnsupportedModel(
            f"{checkpoint.name} holds {len(unread)} tensors that Transformers' "
            f"{type(model).__name__} does not have: {shown}; the checkpoint is of another model "
            f"than model_type {arch.model_type!r} is here"
        )


def _names(checkpoint: Checkpoint, arch: TransformersArchitecture) -> dict[str, str]:
    """See `resolve_names`; missing tensors may be ones that Transformers would convert."""
    try:
        return resolve_names(arch, checkpoint.tensors)
    except CheckpointError as error:
        left = FileNames(arch.model_type).left_out
        if not left:
            raise
        raise UnsupportedModel(
            f"{checkpoint.name}: files of model_type {arch.model_type!r} may have {left[0]} and "
            f"{len(left) - 1} more that have to be converted, which is not supported; {error}"
        ) from error


def _stored_buffers(model: Any) -> dict[str, torch.Tensor]:
    """Buffers that checkpoints hold, by name, with the values that the model computes."""
    stored = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name in stored}


def _check_buffer(
    checkpoint: Checkpoint, arch: TransformersArchitecture, name: str, made: torch.Tensor
) -> None:
    """A buffer is computed by the model, not loaded: the checkpoint must have the same values."""
    info = checkpoint.tensors[name]
    if tuple(info.shape) == tuple(made.shape):
        stop = info.shape[0] if info.shape else 1
        raw = torch.from_numpy(np.atleast_1d(checkpoint.read(name, 0, 0, stop)))
        stored = raw.view(torch.bfloat16) if info.dtype == "bfloat16" else raw
        if torch.equal(stored.float().flatten(), made.float().flatten()):
            return
    raise UnsupportedModel(
        f"{checkpoint.name}: buffer {name} differs from the one that Transformers computes for "
        f"model_type {arch.model_type!r}; loading buffers of a checkpoint is not supported"
    )


def _is_ignored(model: Any, arch: TransformersArchitecture, name: str) -> bool:
    """Whether Transformers ignores this tensor too, without a warning."""
    patterns: Iterable[str] = model._keys_to_ignore_on_load_unexpected or ()
    if any(re.search(pattern, name) for pattern in patterns):
        return True
    is_rope = name.endswith("rotary_emb.inv_freq")  # of files written before buffers were left out
    return is_rope or (arch.tied and name.endswith("lm_head.weight"))
