"""What both sides read: a sentence that suits the model, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from skynet.errors import PlanError
from skynet.models.architecture import Architecture
from skynet.prompts import check_token_ids, token_ids
from skynet.task_names import FILL_MASK
from skynet.text import Text

DEFAULT = "The capital of France is Paris, and that of Italy is"
DEFAULT_MASKED = "Paris is the {mask} of France, and Rome that of Italy."
NUM_IDS = 16  # of the prompt of a model without a tokenizer


def prompt_ids(
    arch: Architecture, files: Mapping[str, bytes], given: str | None, name: str
) -> list[int]:
    """Token ids of `given`, or of a default; `files` as of `Checkpoint.text_files`.

    Raises:
        BadRequest: it is empty, or the model has no tokenizer for it.
        PlanError: it is longer than the model `name` takes.
    """
    text = Text(files)
    if given is None and not text.has_tokenizer:
        count = min(NUM_IDS, arch.max_positions)
        return [(7 * place + 3) % arch.vocab_size for place in range(count)]
    ids = token_ids(_default(arch, text) if given is None else given, text, raw=True)
    if given is None:
        ids = ids[: arch.max_positions]
    check_token_ids(ids, arch.vocab_size)
    if len(ids) > arch.max_positions:
        raise PlanError(f"--prompt has {len(ids)} tokens, and {name} takes {arch.max_positions}")
    return ids


def _default(arch: Architecture, text: Text) -> str:
    mask = text.token_id("mask_token")
    if mask is None or FILL_MASK not in arch.tasks:
        return DEFAULT
    return DEFAULT_MASKED.format(mask=text.spell(mask))
