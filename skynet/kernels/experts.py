"""Mixtures of experts as operations of a decoding step; see experts.c."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from skynet.architecture.router import Router
from skynet.kernels.steps import (
    EXPERT_INPUT,
    EXPERT_OUTPUT,
    ROUTED,
    Float,
    Number,
    Places,
    Pointer,
    Program,
    address,
)

SCORES = ("softmax", "sigmoid", "chosen")
MAX_GROUPS = 4096  # the router keeps their scores on the stack
GROUP_SCORES = {"max": 1, "top2": 2}  # experts whose scores are summed


class _Router(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("weight", "bias", "preference")),
        *((name, Number) for name in ("size", "experts", "chosen")),
        *((name, Number) for name in ("score", "groups", "groups_per_row", "best_in_group")),
        *((name, Number) for name in ("sum_to_one", "source", "target")),
        *((name, Float) for name in ("epsilon", "scale")),
    )


class _ExpertProgram(ctypes.Structure):
    _fields_ = (("calls", Pointer), ("count", Number))


class _Experts(ctypes.Structure):
    _fields_ = (
        ("programs", Pointer),
        ("bias", Pointer),
        *((name, Number) for name in ("experts", "size", "weighs_inputs")),
        *((name, Number) for name in ("routed", "inputs", "outputs", "source", "target")),
    )


class _Score(ctypes.Structure):
    _fields_ = (
        ("weight", Pointer),
        *((name, Number) for name in ("source_size", "target_size", "source", "target")),
    )


@dataclass(frozen=True)
class RouterWeights:
    """What a router computes with, float32: weight (experts, hidden), and vectors (experts,)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    preference: torch.Tensor | None


def emit_router(
    program: Program, weights: RouterWeights, router: Router, chosen: int, source: int
) -> bool:
    """Add the choice of `chosen` experts for each row of `source`."""
    if router.groups > MAX_GROUPS:
        return False
    experts, size = weights.weight.shape
    arguments = _Router(
        weights.weight.data_ptr(),
        address(weights.bias),
        address(weights.preference),
        *(size, experts, chosen),
        *(SCORES.index(router.score), router.groups, router.groups_per_token),
        GROUP_SCORES[router.group_score],
        router.sum_to_one or router.score == "chosen",
        *(source, ROUTED),
        *(router.epsilon, router.scale),
    )
    return program.append("router", arguments, ROUTED, 3 * experts, weights)


def emit_experts(
    program: Program,
    experts: Sequence[Program | None],
    bias: torch.Tensor | None,
    sizes: tuple[int, bool],
    places: Places,
) -> bool:
    """Add the weighted sum of the experts that `emit_router` has chosen.

    experts: the program of each, from INPUT to OUTPUT; None: another shard's.
    bias: (experts, size) float32, of the outputs.
    sizes: the width of a row, and whether weights multiply the experts' inputs.
    """
    size, weighs_inputs = sizes
    calls = [(None, 0) if expert is None else expert.calls() for expert in experts]
    programs = (_ExpertProgram * len(calls))(*(_ExpertProgram(*each) for each in calls))
    arguments = _Experts(
        ctypes.addressof(programs),
        address(bias),
        *(len(calls), size, weighs_inputs),
        *(ROUTED, EXPERT_INPUT, EXPERT_OUTPUT, *places),
    )
    program.need(EXPERT_INPUT, size)
    program.need(EXPERT_OUTPUT, size)
    return program.append("experts", arguments, places[1], size, programs, experts, bias)


def emit_score(program: Program, weight: torch.Tensor, size: int, places: Places) -> bool:
    """Multiply rows of `size` of the target by the sigmoid of the source's product with `weight`,
    (1, source's width) float32."""
    arguments = _Score(weight.data_ptr(), weight.shape[-1], size, *places)
    return program.append("score", arguments, places[1], size, weight)
