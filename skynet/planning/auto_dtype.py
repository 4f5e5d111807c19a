"""What `--dtype auto` is: float32, which is exact, or bfloat16 if all workers are GPUs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from skynet.planning.cost import Candidate
from skynet.planning.plan import Plan

AUTO = "auto"


def cpu_dtype(dtype: str) -> str:
    """The dtype of plans with a CPU among their workers; dtype: as asked for."""
    return "float32" if dtype == AUTO else dtype


def gpu_dtype(dtype: str, plan: Plan) -> str | None:
    """The dtype of plans whose workers are all GPUs, if it differs from that of `plan`.

    Only bfloat16 weights are computed in bfloat16: products with quantised weights are computed in
    float32. Keys and values are never wider than what is computed in.
    """
    narrow = plan.weight_dtype == "bfloat16" and not plan.quantisation
    return "bfloat16" if dtype == AUTO and narrow and plan.kv_dtype != "float32" else None


def all_gpus(members: Sequence[Candidate]) -> bool:
    """Whether all members that stay compute on a GPU; False without any."""
    devices = {member.device.partition(":")[0] for member in members if not member.leaving}
    return devices == {"cuda"}
