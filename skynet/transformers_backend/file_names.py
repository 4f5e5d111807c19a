"""The names of parameters in files, where they differ from the names in Transformers' modules.

They come from Transformers' table of conversions. Supported are plain renamings, and parameters of
all experts that are merged from each expert's matrices. A checkpoint that needs another conversion
lacks tensors by the names here, and is refused for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from skynet.errors import UnsupportedModel

PIECE = ".*."  # in the patterns of files: the number of an expert
LITERAL = re.compile(r"(\w|\\?\.)+")
# The operations that merge the experts' matrices: stack those of one kind, then concatenate.
MERGED = [("MergeModulelist", 0), ("Concatenate", 1)]


class FileNames:
    """The names of tensors in the files of one model type."""

    def __init__(self, model_type: str) -> None:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        self._model_type = model_type
        # (Transformers' name, the file's); the last one is applied first.
        self._renamed: list[tuple[str, str]] = []
        self._merged: list[tuple[str, tuple[str, ...]]] = []
        self.left_out: list[str] = []  # tensors of files that need another conversion
        for conversion in get_checkpoint_conversion_mapping(model_type) or ():
            self._add(conversion)

    def of(self, name: str) -> str:
        """The name in files of a parameter of Transformers' model."""
        for in_model, in_file in reversed(self._renamed):
            name = name.replace(in_model, in_file)
        return name

    def of_experts(self, path: str) -> tuple[str, ...]:
        """The names of the matrices of one expert, in the order of their rows in a parameter of all
        experts, with "{piece}" for the number of the expert.

        Raises:
            UnsupportedModel: the table has no such merge.
        """
        for target, sources in self._merged:
            if path.endswith(target):
                base = path.removesuffix(target)
                return tuple(self.of(base + source.replace("*", "{piece}")) for source in sources)
        raise UnsupportedModel(
            f"model_type {self._model_type!r}: {path.format(layer=0)} is a parameter of all "
            "experts, which files do not have expert by expert; converting tensors is not supported"
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
    patterns = getattr(conversion, f"{side}_patterns", None) or ()
    return [patterns] if isinstance(patterns, str) else list(patterns)
