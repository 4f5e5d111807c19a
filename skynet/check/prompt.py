"""What both sides read: a sentence that suits the model, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from skynet.architecture.architecture import Architecture
from skynet.errors import PlanError
from skynet.request.generation_config import generation_defaults
from skynet.request.prompts import check_token_ids, token_ids
from skynet.request.task_names import FILL_MASK
from skynet.tokenizer.text import Text

DEFAULT = "The capital of France is Paris, and that of Italy is"
DEFAULT_MASKED = "Paris is the {mask} of France, and Rome that of Italy."
NUM_IDS = 16  # of the prompt of a model without a tokenizer


def token_ids_read(
    arch: Architecture, files: Mapping[str, bytes], given: str | None, name: str
) -> list[list[int]]:
    """Token ids that each of the model's stacks reads of the prompt `given`, or of a default.

    files: as of `model_files`.

    Raises:
        BadRequest: the prompt is empty, or the model has no tokenizer for it.
        PlanError: it is longer than the model `name` takes.
    """
    ids = _prompt_ids(arch.stacks[0], files, given, name)
    return [ids] if arch.encoder is None else [ids, _answer_ids(arch, files, ids)]


def _answer_ids(arch: Architecture, files: Mapping[str, bytes], ids: list[int]) -> list[int]:
    """What a decoder reads beside a prompt: its start, then the prompt without its last token.

    That is how models are trained to repeat a text. So tokens see others before them, through masks
    and by their distances; an answer of Transformers' own would take a forward pass for each token.
    Ids that the decoder does not have are taken modulo its vocabulary. A token without a position
    is left out: how Transformers counts the others depends on how many it is given at once.
    """
    # Of a model that names no start each request has to.
    start = generation_defaults(files).always.get("decoder_start_token_id", 0)
    own = [token % arch.vocab_size for token in ids[:-1]]
    return [start, *(token for token in own if token != arch.unplaced_token)]


def _prompt_ids(
    arch: Architecture, files: Mapping[str, bytes], given: str | None, name: str
) -> list[int]:
    """Token ids of `given`, or of a default; `arch` is of the stack that reads it."""
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
