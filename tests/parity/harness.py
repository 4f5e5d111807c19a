"""Runs every shard of a plan in one process: threads, sums in shard order, chords as plain sums."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plans import plan_for
from safetensors import safe_open

from skynet.architecture.architecture import Architecture
from skynet.architecture.tensors import resolve_names, staged_tensors
from skynet.architecture.transformers_model import KEY
from skynet.checkpoint.checkpoint import Checkpoint as SkynetCheckpoint
from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.models.language_model import language_config, language_tensors
from skynet.models.registry import FAMILIES, load_architecture, settled
from skynet.planning.plan import Plan
from skynet.planning.ranges import Range
from skynet.transformers_backend.description import describe_model
from skynet.wire.step import Candidates, LogitsRequest, Row, Step
from skynet.worker.shard_class import shard_class

WAIT_S = 30.0

Result = tuple[torch.Tensor | None, list[Candidates], list[np.ndarray]]


class Checkpoint:
    """A directory as `save_pretrained` leaves it, read by region.

    transformers_backend: run Transformers' layers, even for a supported family.
    """

    def __init__(self, directory: Path, *, transformers_backend: bool = False) -> None:
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = language_config(json.loads((directory / "config.json").read_text()))
        tensors = {name: tensors[stored] for name, stored in language_tensors(tensors).items()}
        tensors |= one_by_one(directory)
        if transformers_backend or config["model_type"] not in FAMILIES:
            config[KEY] = describe_model(config)

        def same(one: str, other: str) -> bool:
            return torch.equal(tensors[one], tensors[other])

        self.config: dict[str, Any] = dict(settled(config, tensors, same))
        self.arch = load_architecture(self.config)
        names = resolve_names(self.arch, tensors)
        self.tensors = {name: tensors[name_in_file] for name, name_in_file in names.items()}
        self.axes = {tensor.name: tensor.axis for tensor in staged_tensors(self.arch)}

    @cached_property
    def is_rounded(self) -> bool:
        """Whether bfloat16 has all numbers of the matrices."""
        matrices = [tensor.float() for tensor in self.tensors.values() if tensor.ndim > 1]
        return all(torch.equal(each, each.bfloat16().float()) for each in matrices)

    def fetch(self, name: str, region: Range) -> torch.Tensor:
        return self.tensors[name].narrow(self.axes[name], region.start, region.size)


def one_by_one(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of experts that are stored in one."""
    checkpoint = open_checkpoint(str(directory), directory)
    return {name: _read(checkpoint, name) for name in checkpoint.packed.numbers}


def _read(checkpoint: SkynetCheckpoint, name: str) -> torch.Tensor:
    tensor = torch.from_numpy(checkpoint.read_whole(name))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


class Exchange:
    """The sum over the shards of one stage: each waits for all, each sums in shard order."""

    def __init__(self, shards: int) -> None:
        self._partials: list[torch.Tensor | None] = [None] * shards
        self._barrier = threading.Barrier(shards)

    def all_reduce(self, shard: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def total(partial: torch.Tensor) -> torch.Tensor:
            assert partial.is_contiguous()
            self._partials[shard] = partial
            self._barrier.wait(WAIT_S)
            result = torch.zeros(partial.shape, dtype=torch.float32)
            for part in self._partials:
                assert part is not None
                result += part
            self._barrier.wait(WAIT_S)
            return result

        return total

    def abort(self) -> None:
        self._barrier.abort()


class Cluster:
    """A plan's shards, and the orchestrator's half of a step: chord bodies and advancing."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        self.plan, self.arch = plan, checkpoint.arch
        self.models = [
            [
                shard_class(checkpoint.arch)(
                    checkpoint.arch, plan, (stage, shard), checkpoint.fetch
                )
                for shard in range(plan.num_shards)
            ]
            for stage in range(len(plan.stages))
        ]
        self._pool = ThreadPoolExecutor(plan.num_shards)
        self._number = 0

    def close(self) -> None:
        self._pool.shutdown()

    def step(
        self, rows: Sequence[Row], layers_per_chord: int, start: int | None = None
    ) -> list[list[Candidates]]:
        """Candidates of each row with a logits request, one per vocabulary shard.

        start: the first layer, the decoder's by default.
        """
        return self.read(rows, layers_per_chord, start)[0]

    def vectors(self, rows: Sequence[Row], layers_per_chord: int) -> list[np.ndarray]:
        """The vector of each row whose text task asks for one: only the first shard has it."""
        return self.read(rows, layers_per_chord)[1]

    def read(
        self, rows: Sequence[Row], layers_per_chord: int, start: int | None = None
    ) -> tuple[list[list[Candidates]], list[np.ndarray]]:
        """Candidates and vectors, of rows that ask for either."""
        results = self.results(rows, layers_per_chord, start)
        first, *others = results
        assert not any(vectors for _, _, vectors in others)
        candidates = zip(*(shard_candidates for _, shard_candidates, _ in results), strict=True)
        return [list(row) for row in candidates], first[2]

    def results(
        self, rows: Sequence[Row], layers_per_chord: int, start: int | None = None
    ) -> list[Result]:
        """The results of the last span, by shard."""
        self._number += 1
        start = self.plan.encoder_layers if start is None else start
        step = Step(self.plan.epoch, self._number, tuple(rows), layers_per_chord, start)
        step = Step.decode(step.encode())
        hidden: torch.Tensor | None = None
        parts: list[Result] = []
        for stage, stage_plan in enumerate(self.plan.stages):
            first, end = max(start, stage_plan.layers.start), stage_plan.layers.stop
            for begin in range(first, end, layers_per_chord):
                stop = min(begin + layers_per_chord, end)
                parts = self._span(stage, step, Range(begin, stop), hidden)
                if parts[0][0] is not None:
                    hidden = torch.zeros_like(parts[0][0])
                    for part, _, _ in parts:
                        assert part is not None
                        assert part.dtype == torch.float32
                        hidden += part
        return parts

    def _span(
        self, stage: int, step: Step, span: Range, hidden: torch.Tensor | None
    ) -> list[Result]:
        exchange = Exchange(self.plan.num_shards)

        def run(shard: int) -> Result:
            torch.set_num_threads(1)
            try:
                model = self.models[stage][shard]
                return model.run(step, span, hidden, exchange.all_reduce(shard))
            except BaseException:
                exchange.abort()
                raise

        if self.plan.num_shards == 1:
            return [run(0)]
        futures = [self._pool.submit(run, shard) for shard in range(self.plan.num_shards)]
        errors = [future.exception(WAIT_S) for future in futures]
        for error in errors:  # the cause, not what it broke
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


@dataclass
class Request:
    """One request, decoded greedily: `joins` is the number of the step at which it joins."""

    prompt: list[int]
    joins: int = 0
    slot: int = 0
    done: int = 0
    tokens: list[int] = field(default_factory=list)


def best(shards: Sequence[Candidates]) -> int:
    """The most probable token among all shards' candidates: largest logit, then smallest id."""
    pairs = [
        (-float(logit), int(token))
        for part in shards
        for token, logit in zip(part.ids, part.logits, strict=True)
    ]
    return min(pairs)[1]


def full_logits(shards: Sequence[Candidates], vocab_size: int) -> np.ndarray:
    """(vocab,) from candidates without a limit."""
    logits = np.full(vocab_size, np.nan, np.float32)
    for part in shards:
        logits[part.ids] = part.logits
    return logits


def generate(
    cluster: Cluster, requests: Sequence[Request], count: int, layers_per_chord: int, chunk: int
) -> list[list[int]]:
    """Greedy continuations of `count` tokens: prompts in chunks, mixed with decoding rows."""
    number = 0
    while any(len(request.tokens) < count for request in requests):
        rows, advanced = [], []
        for request in requests:
            if request.joins > number or len(request.tokens) == count:
                continue
            known = request.prompt + request.tokens
            new = known[request.done :][:chunk]
            ready = request.done + len(new) == len(known)
            logits_request = LogitsRequest() if ready else None
            prompt_length = len(request.prompt)
            rows.append(Row(request.slot, request.done, tuple(new), prompt_length, logits_request))
            advanced.append(request)
            request.done += len(new)
        if rows:
            results = iter(cluster.step(rows, layers_per_chord))
            for request, row in zip(advanced, rows, strict=True):
                if row.logits_request is not None:
                    request.tokens.append(best(next(results)))
        number += 1
    return [request.tokens for request in requests]


def last_logits(cluster: Cluster, arch: Architecture, prompt: list[int], span: int) -> np.ndarray:
    """(vocab,) after the whole prompt in one step."""
    row = Row(0, 0, tuple(prompt), len(prompt), LogitsRequest(top=0))
    return full_logits(cluster.step([row], span)[0], arch.vocab_size)


def round_weights(model: torch.nn.Module) -> None:
    """Round a model's weights to numbers that bfloat16 has; they stay float32."""
    computed = getattr(model, "_keys_to_ignore_on_save", None) or []  # sinusoids
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in computed:
                parameter.copy_(parameter.bfloat16())


def cluster_of(checkpoint: Checkpoint, stages: int, shards: int, **options: Any) -> Cluster:
    """The shards of a plan; an even number of them keep weights in bfloat16 if that loses nothing.

    It does not where they were rounded. Experts are cut by columns.
    """
    options.setdefault("experts", "columns")
    if shards % 2 == 0 and checkpoint.is_rounded:
        options.setdefault("weight_dtype", "bfloat16")
    plan = plan_for(checkpoint.arch, stages, shards, **options)
    return Cluster(checkpoint, plan)
