"""What files call the parameters of Transformers' modules, where that is not what the modules do.

Transformers' own table of conversions says so. Of it plain renamings are understood, and that a
parameter of all experts is put together of each expert's matrices. Other conversions are left out:
a checkpoint that needs them lacks tensors by the names that are left, which is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from skynet.errors import UnsupportedModel

PIECE = ".*."  # in the patterns of files: the number of an expert
LITERAL = re.compile(r"(\w|\\?\.)+")
# What is done to make one parameter of each expert's matrices: they are stacked, then put together.
MERGED = [("MergeModulelist", 0), ("Concatenate", 1)]


class FileNames:
    """The names that files of one model type have."""

    def __init__(self, model_type: str) -> None:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        self._model_type = model_type
        self._renamed: list[tuple[str, str]] = []  # Transformers', the file's; the last comes first
        self._merged: list[tuple[str, tuple[str, ...]]] = []
        self.left_out: list[str] = []  # what files have that would have to be converted
        for conversion in get_checkpoint_conversion_mapping(model_type) or ():
            self._add(conversion)

    def of(self, name: str) -> str:
        """A parameter's name in files, of its name in Transformers' model."""
        for ours, theirs in reversed(self._renamed):
            name = name.replace(ours, theirs)
        return name

    def of_experts(self, path: str) -> tuple[str, ...]:
        """Of a parameter of all experts, the names of the matrices that each expert's part is made
        of, from its first row on, with "{piece}" for the number of the expert.

        Raises:
            UnsupportedModel: that is not known.
        """
        for target, sources in self._merged:
            if path.endswith(target):
                base = path.removesuffix(target)
                return tuple(self.of(base + source.replace("*", "{piece}")) for source in sources)
        raise UnsupportedModel(
            f"model_type {self._model_type!r}: {path.format(layer=0)} is a parameter of all "
            "experts, that files do not have expert by expert; tensors would have to be converted, "
            "which is not done here"
        )

    def _add(self, conversion: Any) -> None:
        kind, operations = type(conversion).__name__, getattr(conversion, "operations", None) or ()
        sources, targets = _listed(conversion, "source"), _listed(conversion, "target")
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in operations]
        if len(targets) == len(sources) == 1 and kind == "WeightRenaming" and _plain(*sources):
            self._renamed.append((_unescaped(targets[0]), _unescaped(sources[0])))
        elif (
            len(targets) == 1 and all(PIECE in name for name in sources) and _merge(steps, sources)
        ):
            self._merged.append((targets[0], tuple(sources)))
        else:
            self.left_out += sources


def _plain(source: str) -> bool:
    return LITERAL.fullmatch(source) is not None


def _unescaped(pattern: str) -> str:
    return pattern.replace("\\", "")


def _merge(steps: list[tuple[str, int | None]], sources: Sequence[str]) -> bool:
    return steps == MERGED[: min(2, len(sources))]


def _listed(conversion: Any, side: str) -> Sequence[str]:
    found = getattr(conversion, f"{side}_patterns", None) or ()
    return [found] if isinstance(found, str) else list(found)
