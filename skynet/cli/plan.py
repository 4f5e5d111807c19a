"""The command `plan`, which predicts what a model needs and how fast it is. It needs no weights."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from skynet.cli import terminal
from skynet.cli.options import COUNT, EXPERTS, json_option, slot_options
from skynet.cli.root import main

if TYPE_CHECKING:
    from skynet.planning.cost import Candidate
    from skynet.planning.forecast import Question
    from skynet.planning.timing import Costs

MAX_WORKERS, MAX_COUNTS = 256, 32
DEFAULT_COUNTS = (1, 2, 4, 8)
ABOVE_0 = click.FloatRange(min=0, min_open=True, max=1e9)
WEIGHTS = {"bf16": "bfloat16", "q8": "q8", "q4": "q4"}


class Counts(click.ParamType):
    """Numbers of workers: 2,4,8."""

    name = "counts"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        numbers = [int(word) for word in words if word.strip().isascii() and word.strip().isdigit()]
        if (
            len(numbers) != len(words)
            or len(numbers) > MAX_COUNTS
            or not all(1 <= number <= MAX_WORKERS for number in numbers)
        ):
            self.fail(
                f"{value!r:.80} is no list of numbers from 1 to {MAX_WORKERS}; write 2,4,8, say",
                param,
                ctx,
            )
        return tuple(numbers)


@dataclass(frozen=True)
class Machines:
    """What is assumed of the workers' machines; None: as measured."""

    rtt_ms: float | None
    cores: int | None
    memory_gib: float | None


@main.command()
@click.argument("model")
@click.option(
    "--workers",
    type=Counts(),
    metavar="N,N,...",
    help="Numbers of workers; all shapes with exactly so many are shown.  [default: 1,2,4,8, or "
    "the members of the cluster]",
)
@click.option(
    "--weights",
    type=click.Choice(list(WEIGHTS)),
    help="How weights are kept.  [default: as the checkpoint has them]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What workers compute in.",
)
@click.option(
    "--exchange",
    "link",
    type=click.Choice(["auto", "direct", "redis"]),
    default="auto",
    show_default=True,
    help="How the shards of a stage exchange partials: directly, which needs "
    "SKYNET_EXCHANGE_LISTEN between machines, or through Redis. auto: directly on one machine.",
)
@click.option(
    "--rtt-ms",
    type=click.FloatRange(min=0, max=1e5),
    help="Round trip between machines and Redis, as ping shows it.  [default: 0.3, or as the "
    "members measure it]",
)
@click.option(
    "--bandwidth-mbit",
    type=ABOVE_0,
    default=1000,
    show_default=True,
    help="Network link of each machine.",
)
@click.option("--cores", type=COUNT, help="Cores of each worker.  [default: as here]")
@click.option("--memory-gib", type=ABOVE_0, help="Memory of each worker.  [default: as is free]")
@click.option(
    "--from-cluster",
    is_flag=True,
    help="Use the speeds, cores, memory and round trips that the members at SKYNET_REDIS_URL have "
    "measured, not those of this machine.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Do not start a small cluster here to measure chords and sums: take default values.",
)
@EXPERTS
@slot_options
@json_option
def plan(
    model: str,
    workers: tuple[int, ...] | None,
    weights: str | None,
    bandwidth_mbit: float,
    from_cluster: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict memory and speed of MODEL for numbers of workers.

    Shows, for each shape, the memory of a worker and of Redis, the time to load, the first token
    after a prompt of 1,000 tokens and the tokens per second of 1 request and of 16; recommends a
    shape, and says from which number of workers on more are slower. Each worker is taken to be a
    machine like this one, whose products, chords and sums are measured in half a minute.

    MODEL is as for `skynet split`, but needs no weights: a directory with a config.json is enough,
    and of a hub id nothing else is downloaded.

    \b
        skynet plan Qwen/Qwen3-0.6B --workers 2,4,8
        skynet plan ./Llama-3.3-70B --weights q4 --workers 4,8,16 --cores 16 --memory-gib 64
        skynet plan smollm2 --rtt-ms 5 --bandwidth-mbit 100
    """
    from skynet.cli.forecast_table import forecast_json, print_forecasts
    from skynet.planning.forecast import forecasts

    quick = options.pop("quick")
    machines = Machines(*(options.pop(name) for name in ("rtt_ms", "cores", "memory_gib")))
    question, name = _question(model, weights, options)
    with terminal.err.status("Measuring this machine ..."):
        members, costs, source = (_of_cluster if from_cluster else _of_machine)(machines, quick)
    costs = replace(costs, link=question.costs.link, wire_bytes_per_s=bandwidth_mbit * 1e6 / 8)
    question = replace(question, costs=costs)
    counts = workers or (tuple(range(1, len(members) + 1)) if from_cluster else DEFAULT_COUNTS)
    members = enough(members, max(counts))
    made = forecasts(question, counts, members)
    if as_json:
        assumed = {"source": source, "worker": asdict(members[0]), "costs": asdict(costs)}
        click.echo(json.dumps({"model": name, **forecast_json(question, made), "assumed": assumed}))
    else:
        print_forecasts(name, question, made, source)


def _question(model: str, weights: str | None, options: dict[str, Any]) -> tuple[Question, str]:
    """What is asked, and the name of the model."""
    from skynet.checkpoint.model_config import model_config
    from skynet.models.registry import checkpoint_dtype
    from skynet.planning.forecast import Question
    from skynet.planning.split import NUMBER_BYTES, PlanOptions
    from skynet.planning.timing import Costs
    from skynet.settings import settings
    from skynet.transformers_backend.opening import architecture_of

    name, config, layout = model_config(model, settings().cache_dir)
    dtype = options["dtype"]
    in_file = checkpoint_dtype(config)
    stored = layout or (in_file if in_file in NUMBER_BYTES and dtype == "float32" else dtype)
    named = PlanOptions(
        "",
        name,
        dtype,
        num_slots=options["num_slots"],
        slot_tokens=options["slot_tokens"],
        experts=options["experts"],
    )
    kept = WEIGHTS[weights] if weights else stored
    question = Question(architecture_of(config), named, kept, Costs(link=options["link"]))
    question.layout(1, 1)  # refuses wrong options
    return question, name


def _of_machine(machines: Machines, quick: bool) -> tuple[list[Candidate], Costs, str]:
    """A candidate like this machine, the costs, and where they are from."""
    from skynet.planning.cost import Candidate
    from skynet.planning.timing import CALL_S, Costs
    from skynet.worker.layer_speed import measure_layer
    from skynet.worker.memory import free_memory
    from skynet.worker.speed import measure_speeds

    here = os.cpu_count() or 1
    speeds = measure_speeds("cpu", here, min_s=0.3)
    layer_s, row_s = measure_layer(speeds, min_s=0.3)
    costs, measured = _with_distribution(Costs(layer_s=layer_s, row_s=row_s), quick)
    memory = machines.memory_gib
    candidate = Candidate(
        "worker",
        cores=machines.cores or here,
        speed=speeds.one_row,
        few_rows=speeds.few_rows,
        many_rows=speeds.many_rows,
        round_trip_s=(0.3 if machines.rtt_ms is None else machines.rtt_ms) / 1e3 + CALL_S,
        free_bytes=int(memory * 2**30) if memory else free_memory(),
    )
    return [candidate], costs, f"this machine's {here} cores; {measured}"


def _with_distribution(costs: Costs, quick: bool) -> tuple[Costs, str]:
    """The costs with chords and sums as measured here, and whether they are."""
    from skynet.bench.distribution import measure_distribution
    from skynet.errors import SkynetError

    if quick:
        return costs, "chords and sums by default values"
    try:
        return measure_distribution(costs.layer_s).costs(costs), "chords and sums measured, too"
    except SkynetError as error:
        return costs, f"chords and sums by default values ({error})"


def _of_cluster(machines: Machines, quick: bool) -> tuple[list[Candidate], Costs, str]:
    """The members of the cluster as candidates, the costs, and where they are from."""
    from skynet.errors import ConfigurationError
    from skynet.orchestrator.membership import Membership
    from skynet.planning.timing import CALL_S, Costs
    from skynet.redis_url import hide_password
    from skynet.settings import settings
    from skynet.store.connection import connect, reachable
    from skynet.store.members import Members

    with reachable(), connect(timeout_s=5) as client:
        membership = Membership(Members(client, settings().lease_s), lambda kind, text: None)
        membership.look()
    found = membership.candidates()
    url = hide_password(settings().redis_url)
    if not found:
        raise ConfigurationError(
            f"--from-cluster: no worker at {url} has measured its speed; start some, or leave the "
            "option out to measure this machine"
        )
    changes: dict[str, Any] = {}
    if machines.rtt_ms is not None:
        changes["round_trip_s"] = machines.rtt_ms / 1e3 + CALL_S
    if machines.cores is not None:
        changes.update(cores=machines.cores, threads=0)
    if machines.memory_gib is not None:
        changes["free_bytes"] = int(machines.memory_gib * 2**30)
    members = [replace(member, **changes) for member in found]
    return members, Costs(), f"the {len(found)} workers at {url}"


def enough(members: list[Candidate], count: int) -> list[Candidate]:
    """So many members: further ones are like the slowest, each on a separate host."""
    slowest = min(members, key=lambda member: member.speed)
    more = range(len(members), count)
    return [*members, *(replace(slowest, id=f"worker{n}", host="", pinned="") for n in more)]
