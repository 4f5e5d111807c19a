"""The table of docs/models.md, made of the families' files: what is computed, what is refused.

`python -m tests.models_page > docs/models.md` brings the page up to date; a test compares.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from skynet.models.registry import FAMILIES
from tests.transformers_types import REFUSED, RUN, TRANSFORMERS

HEAD = """# Models

Made by `python -m tests.models_page` of the files in `skynet/models/`: do not edit by hand.
[adding-a-model.md](adding-a-model.md) says how to add a row.

A family is known by `model_type` in config.json. Each is computed in any number of stages and
shards, even or not, and its logits and greedy tokens, or what it reads of texts, are compared with
those of Transformers, in float32, by `tests/parity`; `skynet check` compares a checkpoint of yours.
A field with a value that is not computed is refused by name when the checkpoint is opened; the last
column names such fields and the only value that is taken, and what else is refused.

| family | model type | what it is | refused |
| --- | --- | --- | --- |
"""

DERIVED = f"""
## Families without a file

Another `model_type` is run if Transformers knows it, with a tensor-parallel plan
(`base_model_tp_plan`) by which its modules can be cut: Transformers' own layers, with the shard's
part of the weights, our attention over KV slots and our sums. That is slower than a family with a
file, and said so in the log when it is split and when it is loaded. Before anything is staged a
layer of each kind, and both ends, are computed cut and uncut and compared; a model that differs is
refused, as is whatever of it is not understood. Workers need the same version of Transformers as
the machine that split the model.

Tried with Transformers {TRANSFORMERS}, on tiny random checkpoints; those that run are compared with
Transformers in several shapes by `tests/parity/test_transformers_backend.py`, and that the others
are refused is tested too.

| model type | runs |
| --- | --- |
"""
DERIVED_REFUSED = """
| refused | because of | says |
| --- | --- | --- |
"""


def page() -> str:
    """The whole of docs/models.md."""
    rows = sorted((_row(name, family) for name, family in FAMILIES.items()), key=str.lower)
    run = [f"| `{name}` | {note or 'yes'} |" for name, note in RUN.items()]
    refused = [
        f"| {', '.join(f'`{name}`' for name in one.model_types.split())} | {one.why} | {one.says} |"
        for one in REFUSED
    ]
    return HEAD + _lines(rows) + DERIVED + _lines(run) + DERIVED_REFUSED + _lines(refused)


def _lines(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _row(name: str, family: ModuleType) -> str:
    title, _, rest = (family.__doc__ or "").partition(": ")
    summary, _, limits = rest.partition("\n\n")
    refused: dict[str, Any] = getattr(family, "REFUSED", {})
    notes = [f"`{field}` other than {_shown(value)}" for field, value in refused.items()]
    if limits.strip():
        notes.append(_one_line(limits))
    return f"| {_one_line(title)} | `{name}` | {_one_line(summary)} | {'; '.join(notes)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower()


if __name__ == "__main__":
    print(page(), end="")
