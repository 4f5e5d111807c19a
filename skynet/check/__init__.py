"""A parity test of one's own checkpoint, layer by layer, without Redis and without workers.

Each layer of Transformers' model and the shards of ours get the same input, theirs, so that an
error is named where it arises and not where it is seen. On either side one layer at a time is in
memory. `theirs.py` runs theirs, `ours.py` ours; this puts them side by side.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Collection

import torch

from skynet.check.compare import LIMITS, Difference, difference, row_scale
from skynet.check.derived import DerivedOurs
from skynet.check.ours import CheckpointFetch, LayerRun, Ours, add_up
from skynet.check.report import Finding, Place, Report
from skynet.check.theirs import DenseLayer, Theirs
from skynet.derived.opening import open_model
from skynet.errors import PlanError, UnsupportedModel
from skynet.layers.shard_model import DTYPES
from skynet.layers.weights import Fetch
from skynet.models import Architecture, load_architecture
from skynet.models.checkpoint import Checkpoint
from skynet.models.derived import Derived
from skynet.planning.plan import Plan
from skynet.planning.split import make_plan
from skynet.prompts import check_token_ids, token_ids
from skynet.settings import settings
from skynet.text import Text

__all__ = ["Report", "check_model"]

DEFAULT_PROMPT = "The capital of France is Paris, and that of Italy is"
NUM_IDS = 16  # of the prompt of a model without a tokenizer
Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


def check_model(
    model: str,
    stages: int = 2,
    shards: int = 2,
    *,
    prompt: str | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
    fetch: Fetch | None = None,
) -> Report:
    """Compare SkyNet's shards with Transformers on one prompt.

    model: as of `skysplit`.
    dtype: what both compute in. float32 tells rounding from mistakes, whatever the checkpoint is
        stored in.
    fetch: where our shards' weights come from; the checkpoint by default.

    Raises:
        CheckpointError, UnsupportedModel, PlanError, BadRequest: what cannot be compared, by name.
        ConfigurationError: Transformers is not installed.
    """
    checkpoint = open_model(model, settings().cache_dir)
    arch = load_architecture(checkpoint.config)
    if arch.bidirectional:
        raise UnsupportedModel(
            f"{checkpoint.name} is a {arch.model_type} encoder: `skynet check` compares what "
            "generates; the parity suite of the repository compares encoders"
        )
    ids = prompt_ids(checkpoint, arch, prompt)
    plan = plan_of(checkpoint, arch, ids, stages, shards, dtype)
    report = new_report(checkpoint, arch, plan, ids)
    compare(checkpoint, arch, plan, ids, report, progress, fetch)
    text = Text(checkpoint.text_files())
    report.next_text = repr(text.decode([report.next_ours])) if text.has_tokenizer else ""
    report.peak_bytes = _peak_bytes()
    return report


def plan_of(
    checkpoint: Checkpoint, arch: Architecture, ids: list[int], stages: int, shards: int, dtype: str
) -> Plan:
    """A plan for one prompt alone."""
    return make_plan(
        arch,
        model=checkpoint.name,
        name=checkpoint.name,
        stages=stages,
        shards=shards,
        dtype=dtype,
        num_slots=1,
        slot_tokens=len(ids),
    )


def compare(
    checkpoint: Checkpoint,
    arch: Architecture,
    plan: Plan,
    ids: list[int],
    report: Report,
    progress: Progress | None,
    fetch: Fetch | None = None,
    only: Collection[int] | None = None,
) -> None:
    """Fill the report in; `only` are the layers that are compared, all by default."""
    source = CheckpointFetch(checkpoint, arch)
    num_bytes = sum(tensor.num_bytes for tensor in source.plans.values())
    num_places = 2 + (arch.num_layers if only is None else len(only))

    def done() -> None:
        if progress is not None:
            progress("checking", num_bytes * len(report.places) // num_places, num_bytes)

    comparison = _Comparison(arch, plan, fetch or source, ids, report, done)
    Theirs(checkpoint, arch, DTYPES[plan.dtype], comparison.cuts).run(ids, comparison, only)


def prompt_ids(checkpoint: Checkpoint, arch: Architecture, prompt: str | None) -> list[int]:
    """The tokens of a prompt; of None, of one that any model can read."""
    text = Text(checkpoint.text_files())
    if prompt is None and not text.has_tokenizer:
        count = min(NUM_IDS, arch.max_positions)
        return [(7 * place + 3) % arch.vocab_size for place in range(count)]
    ids = token_ids(DEFAULT_PROMPT if prompt is None else prompt, text, raw=True)
    if prompt is None:
        ids = ids[: arch.max_positions]
    check_token_ids(ids, arch.vocab_size)
    if len(ids) > arch.max_positions:
        raise PlanError(
            f"--prompt has {len(ids)} tokens, and {checkpoint.name} takes {arch.max_positions}"
        )
    return ids


def new_report(checkpoint: Checkpoint, arch: Architecture, plan: Plan, ids: list[int]) -> Report:
    """A report without places: what is compared with what, and what is not."""
    from importlib.metadata import version

    stages, shards = plan.shape
    notes = [f"{arch.notice}; compared with the same uncut"] if isinstance(arch, Derived) else []
    windows = [window for window in arch.windows if window is not None]
    if windows and min(windows) >= len(ids):
        notes.append(
            f"not tried: the end of windows of {min(windows)} tokens, as the prompt has "
            f"{len(ids)}; a longer --prompt reaches it"
        )
    if arch.num_experts and plan.dtype != "float32":
        notes.append(
            "experts that a token likes equally up to rounding may be chosen otherwise in "
            f"{plan.dtype}, which looks like a mistake; --dtype float32 tells"
        )
    return Report(
        model=checkpoint.name,
        model_type=arch.model_type,
        stages=stages,
        shards=shards,
        dtype=plan.dtype,
        limit=LIMITS[plan.dtype],
        versions=f"Transformers {version('transformers')}, torch {version('torch')}",
        num_tokens=len(ids),
        notes=notes,
    )


def _peak_bytes() -> int:
    """The most memory this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Comparison:
    """Runs our shards wherever theirs has been, and writes down how far they are apart."""

    def __init__(
        self,
        arch: Architecture,
        plan: Plan,
        fetch: Fetch,
        ids: list[int],
        report: Report,
        done: Callable[[], None],
    ) -> None:
        """done: called after each place."""
        self._arch, self._plan, self._report = arch, plan, report
        self._ids, self._done = ids, done
        self._ours: Ours | DerivedOurs
        if isinstance(arch, Derived):
            self._ours = DerivedOurs(arch, plan, fetch, ids)
        else:
            self._ours = Ours(arch, plan, fetch, ids)
        self._own: torch.Tensor | None = None  # hidden states that only our layers have seen
        self._rows: torch.Tensor | None = None
        self._embedded: LayerRun | None = None
        self._last: torch.Tensor | None = None  # their output of the last layer

    def cuts(self, layer: int) -> tuple[list[slice], list[slice]]:
        """Of each shard, its inputs of the attention's output product and of the MLP's."""
        size, parts = self._arch.head_dim, self._ours.parts(self._plan.stage_of(layer))
        heads = [slice(part.heads.start * size, part.heads.stop * size) for part in parts]
        return heads, [slice(part.columns.start, part.columns.stop) for part in parts]

    def embedding(self, rows: torch.Tensor) -> None:
        # Without a file there are no partials that could be compared with them.
        self._rows = None if isinstance(self._arch, Derived) else rows

    def layer(
        self, layer: int, x: torch.Tensor, out: torch.Tensor, dense: DenseLayer | None
    ) -> None:
        x, out = x.float(), out.float()
        if layer == 0:
            self._compare_embedding(x)
        shards = self._ours.load_layer(layer)
        run = shards.run(x)
        partials = [] if dense is None else self._partials(layer, run, dense)
        findings = [*partials, *_outputs(run, out)]
        self._add(f"layer {layer}", self._plan.stage_of(layer), findings)
        if self._own is not None:
            self._own = shards.run(self._own).outputs[0]
        self._last = out

    def head(self, logits: torch.Tensor) -> None:
        logits = logits.float()
        if self._last is None or self._own is None:
            raise PlanError(f"{self._arch.model_type}: Transformers ran no layer")
        found, own = self._ours.head([self._last, self._own[-1:]])
        stage = len(self._plan.stages) - 1
        scale, findings = row_scale(logits), []
        for shard, part in enumerate(self._ours.parts(stage)):
            theirs = logits[:, part.vocab.start : part.vocab.stop]
            apart = difference(found[shard], theirs, scale)
            findings.append(Finding("logits", shard, _shifted(apart, part.vocab.start)))
        self._add("head", stage, findings)
        after_all = torch.cat(own, dim=1)
        self._report.drift = difference(after_all, logits[-1:])
        self._report.next_ours = int(after_all[0].argmax())
        self._report.next_theirs = int(logits[-1].argmax())

    def _compare_embedding(self, x: torch.Tensor) -> None:
        run = self._ours.embed()
        findings = []
        if self._rows is not None:
            ids, scale = torch.tensor(self._ids), row_scale(self._rows)
            for shard, part in enumerate(self._ours.parts(0)):
                own = (ids >= part.vocab.start) & (ids < part.vocab.stop)
                apart = difference(run.partials[0][shard], self._rows * own[:, None], scale)
                findings.append(Finding("rows of tokens", shard, apart))
        self._add("embedding", 0, [*findings, *_outputs(run, x)])
        self._own = run.outputs[0]

    def _partials(self, layer: int, run: LayerRun, dense: DenseLayer) -> list[Finding]:
        """Of each sum of the layer, in order, each shard's part of it."""
        expected = self._expected(layer, dense)
        findings = []
        for (what, theirs), ours in zip(expected, run.partials, strict=True):
            scale = row_scale(*theirs, add_up(theirs))
            findings += [
                Finding(what, shard, difference(mine, other, scale))
                for shard, (mine, other) in enumerate(zip(ours, theirs, strict=True))
            ]
        return findings

    def _expected(self, layer: int, dense: DenseLayer) -> list[tuple[str, list[torch.Tensor]]]:
        sums = []
        if dense.norm_inputs is not None:
            sums.append(("mean squares of queries and keys", self._mean_squares(layer, dense)))
        if self._arch.parallel:
            both = [a + b for a, b in zip(dense.attention, dense.mlp, strict=True)]
            return [*sums, ("attention and MLP", both)]
        return [*sums, ("attention", dense.attention), ("MLP", dense.mlp)]

    def _mean_squares(self, layer: int, dense: DenseLayer) -> list[torch.Tensor]:
        """Of each shard (tokens, 2); a KV head that shards share counts in the first of them."""
        size, found = self._arch.head_dim, []
        queries, keys = dense.norm_inputs or (torch.empty(0), torch.empty(0))
        for part in self._ours.parts(self._plan.stage_of(layer)):
            q = queries[:, part.heads.start * size : part.heads.stop * size]
            k = keys[:, part.kv_heads.start * size : part.kv_heads.stop * size]
            first = part.heads.start == part.kv_heads.start * self._arch.group
            pair = [q.square().sum(1), k.square().sum(1) * first]
            totals = [queries.shape[1], keys.shape[1]]
            found.append(torch.stack([a / b for a, b in zip(pair, totals, strict=True)], dim=1))
        return found

    def _add(self, name: str, stage: int, findings: list[Finding]) -> None:
        self._report.places.append(Place(name, stage, tuple(findings)))
        self._done()


def _outputs(run: LayerRun, theirs: torch.Tensor) -> list[Finding]:
    return [
        Finding("output", shard, difference(ours, theirs)) for shard, ours in enumerate(run.outputs)
    ]


def _shifted(found: Difference, by: int) -> Difference:
    return Difference(found.absolute, found.relative, found.token, found.index + by)
