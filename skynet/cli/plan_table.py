"""The plan as a table: what each shard has of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from skynet.planning.promise import promise

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("layers", "heads", "weights")


def slices(plan: Mapping[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Address -> (layers, heads) of a plan's summary."""
    return {
        shard["address"]: (span(stage["layers"]), span(shard["heads"]))
        for stage in (plan["stages"] if plan else [])
        for shard in stage["shards"]
    }


def plan_table(plan: Mapping[str, Any], weight_bytes: Mapping[str, int]) -> Table:
    """A row for each worker of a plan's summary.

    weight_bytes: of each address.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("worker", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for address, (layers, heads) in slices(plan).items():
        table.add_row(address, layers, heads, megabytes(weight_bytes.get(address, 0)))
    return table


def span(bounds: list[int]) -> str:
    """A half-open range of layers or heads."""
    return f"[{bounds[0]}, {bounds[1]})"


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.1f} MB"


def many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def dtypes_of(plan: Mapping[str, Any], exchange_dtypes: Collection[str] = ()) -> str:
    """What a plan computes in, where they differ what it keeps weights, keys and values in, and
    its promise.
    """
    dtype, weights, kept = (
        plan["dtype"],
        plan["quantisation"] or plan["weight_dtype"],
        plan["kv_dtype"],
    )
    words = [dtype]
    words += [f"{weights} weights"] if weights != dtype else []
    words += [f"{kept} keys and values"] if kept != dtype else []
    return ", ".join([*words, promise(dtype, kept, exchange_dtypes)])
