"""The prompt of a comparison: token ids for each stack, of a default sentence or the user's."""

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


def stack_inputs(
    arch: Architecture, files: Mapping[str, bytes], prompt: str | None, name: str
) -> list[list[int]]:
    """Token ids for each of the model's stacks, from `prompt` or a default sentence.

    files: as of `model_files`.
    name: of the model, for errors.

    Raises:
        BadRequest: the prompt is empty, or the model has no tokenizer for it.
        PlanError: the prompt is longer than the model allows.
    """
    ids = _prompt_ids(arch.stacks[0], files, prompt, name)
    return [ids] if arch.encoder is None else [ids, _decoder_ids(arch, files, ids)]


def _decoder_ids(arch: Architecture, files: Mapping[str, bytes], ids: list[int]) -> list[int]:
    """The decoder's start token, then the prompt without its last token (teacher forcing).

    So tokens see others before them, through masks and by their distances; to generate an answer
    with Transformers would take a forward pass for each token. Ids beyond the decoder's vocabulary
    are taken modulo its size. A token without a position is left out: how Transformers counts the
    other positions depends on the number of tokens in the call.
    """
    # If the model names no start token, each request must, so any will do here.
    start = generation_defaults(files).always.get("decoder_start_token_id", 0)
    repeated = [token % arch.vocab_size for token in ids[:-1]]
    return [start, *(token for token in repeated if token != arch.unplaced_token)]


def _prompt_ids(
    arch: Architecture, files: Mapping[str, bytes], prompt: str | None, name: str
) -> list[int]:
    """Token ids of `prompt`, or of a default; `arch` is the first stack's."""
    text = Text(files)
    if prompt is None and not text.has_tokenizer:
        count = min(NUM_IDS, arch.max_positions)
        return [(7 * place + 3) % arch.vocab_size for place in range(count)]
    ids = token_ids(_default(arch, text) if prompt is None else prompt, text, raw=True)
    if prompt is None:
        ids = ids[: arch.max_positions]
    check_token_ids(ids, arch.vocab_size)
    if len(ids) > arch.max_positions:
        raise PlanError(f"--prompt has {len(ids)} tokens, and {name} allows {arch.max_positions}")
    return ids


def _default(arch: Architecture, text: Text) -> str:
    mask = text.token_id("mask_token")
    if mask is None or FILL_MASK not in arch.tasks:
        return DEFAULT
    return DEFAULT_MASKED.format(mask=text.spell(mask))
