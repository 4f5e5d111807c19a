"""cost, bandwidth: how much of a decoding step at 1x2 is distribution, and how much is memory."""

from __future__ import annotations

import os
import time
from statistics import median

from skynet.bench.models import SMOLLM2, BenchModel
from skynet.bench.report import Result
from skynet.bench.shard import LoneShards
from skynet.local.cluster import LocalCluster
from skynet.models.registry import load_architecture
from skynet.planning.memory import head_bytes, layer_bytes
from skynet.planning.plan import Plan
from skynet.staging.split import SplitOptions, open_source

PROMPT_TOKENS, NUM_TOKENS = 16, 64
MAX_COST = 15.0  # percent of a step
MIN_SHARES = {"bf16": 65.0, "q8": 50.0}  # percent of a step
FORMS = ("bf16", "q8", "q4")
READ_BYTES, READ_S = 512 * 2**20, 1.0


def cost(rounds: int, model: BenchModel = SMOLLM2) -> Result:
    """What a step at 1x2 takes beyond a shard's compute alone, with bfloat16 weights."""
    name = "step less a shard's compute"
    steps, alone = [], []
    with (
        LocalCluster(model.find(), 1, 2, weights="bf16") as cluster,
        LoneShards(model.find(), "bf16") as shards,
    ):
        _step_s(cluster), shards.step_s()  # warm up
        for _ in range(rounds):
            steps.append(_step_s(cluster))
            alone.append(shards.step_s())
    shares = [100 * (1 - own / step) for step, own in zip(steps, alone, strict=True)]
    notes = {
        "step": f"{1e3 * median(steps):.1f} ms",
        "a shard's compute": f"{1e3 * median(alone):.1f} ms, of the slower shard, both at once",
    }
    return Result("cost", _what(model), "%", {name: shares}, notes=notes, targets={name: MAX_COST})


def bandwidth(rounds: int, model: BenchModel = SMOLLM2) -> Result:
    """The time to read a step's weights from memory, as a share of the step, by their form."""
    samples: dict[str, list[float]] = {}
    notes = {}
    for form in FORMS:
        with LocalCluster(model.find(), 1, 2, weights=form) as cluster:
            size = step_bytes(model.find(), form, cluster.plan) if cluster.plan else 0.0
            _step_s(cluster)
            rates = [(memory_bytes_per_s(), _step_s(cluster)) for _ in range(rounds)]
        samples[form] = [100 * size / rate / step for rate, step in rates]
        rate, step = (median(values) for values in zip(*rates, strict=True))
        notes[form] = f"{size / 1e6:.0f} MB in {1e3 * step:.1f} ms; memory {rate / 1e9:.1f} GB/s"
    return Result("bandwidth", _what(model), "%", samples, notes=notes, floors=MIN_SHARES)


def step_bytes(model: str, form: str, plan: Plan) -> float:
    """Bytes of the weights that the shards of a plan read in a decoding step."""
    arch = load_architecture(open_source(model, SplitOptions(weights=form)).config)
    layers = sum(
        sum(layer_bytes(arch, plan, address, plan.stages[address[0]].layers))
        for address in plan.addresses()
    )
    return layers + sum(head_bytes(arch, plan, shard) for shard in range(plan.num_shards))


def memory_bytes_per_s() -> float:
    """The speed at which all cores together read a large array: the best of about a second."""
    import torch

    numbers = torch.ones(READ_BYTES // 4)
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    best_s, until = float("inf"), time.perf_counter() + READ_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        numbers.sum()
        best_s = min(best_s, time.perf_counter() - started)
    torch.set_num_threads(before)
    return READ_BYTES / best_s


def _step_s(cluster: LocalCluster) -> float:
    """Seconds of a decoding step of one request."""
    prompt = [100 + 11 * index for index in range(PROMPT_TOKENS)]
    answer = cluster.submit_prompt(prompt, max_tokens=NUM_TOKENS, ignore_eos=True).get()
    return 1 / answer.timings["decode_tokens_per_s"]


def _what(model: BenchModel) -> str:
    return f"share of a decoding step, {model.title} at 1x2, {os.cpu_count()} cores"
