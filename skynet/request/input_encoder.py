"""The inputs of text tasks as token ids, made as sentence-transformers makes them.

A text to embed may have one of the model's prompts before it. A pair of texts is one prompt of an
encoder, or the question of a decoder that answers yes or no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skynet.architecture.architecture import Architecture
from skynet.errors import BadRequest
from skynet.request.option_values import shown
from skynet.request.prompts import EncodedText, Prompt, check_text, some, token_ids
from skynet.request.reranker import Reranker
from skynet.request.task_names import CLASSIFY, EMBED, RERANK
from skynet.tokenizer.text import Pair, Text

PAIR_TASKS = (CLASSIFY, RERANK)


class InputEncoder:
    """Encodes the inputs of one model's text tasks."""

    def __init__(
        self,
        text: Text,
        arch: Architecture,
        settings: Mapping[str, Any],
        reranker: Reranker | None = None,
    ) -> None:
        """settings: the model's embedding.json, {} without; reranker: of a decoder."""
        self._text, self._arch = text, arch
        self._settings, self._reranker = settings, reranker

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts of texts to embed, by name."""
        prompts: Mapping[str, str] = self._settings.get("prompts", {})
        return prompts

    def encode(self, given: Prompt, task: str, options: dict[str, Any]) -> EncodedText:
        """The token ids of a text, of a pair of texts, or of given ids, which are not checked.

        options: those that decide ids, `prompt_name` and `instruction`, are taken out.

        Raises:
            BadRequest: empty, too long, or not an input of this task.
        """
        name = options.pop("prompt_name", None) if task == EMBED else None
        instruction = options.pop("instruction", None) if task == RERANK else None
        if isinstance(given, EncodedText):
            return given
        pair = _pair(given)
        if pair is not None and task in PAIR_TASKS:
            return self._pair(pair, task, instruction)
        if pair is not None or (task == RERANK and isinstance(given, str)):
            wanted = "one text" if pair else "a pair of texts, such as (query, document)"
            raise BadRequest(f"prompt {shown(given)}: task {task} takes {wanted}")
        if task == EMBED and isinstance(given, str):
            return self._text_to_embed(given, self._prompt(name))
        return EncodedText(tuple(token_ids(given, self._text, raw=True)))

    def _prompt(self, name: Any) -> str:
        name = self._settings.get("default_prompt_name") if name is None else name
        if not name:
            return ""
        if not isinstance(name, str) or name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise BadRequest(f"prompt_name {shown(name)}: the model's prompts are {known}")
        return self.prompts[name]

    def _text_to_embed(self, given: str, prompt: str) -> EncodedText:
        check_text(given)
        ids = some(self._encode(prompt + given))
        if not prompt or self._settings.get("include_prompt", True):
            return EncodedText(tuple(ids))
        # As sentence-transformers counts the prompt's tokens: without the special one after them.
        before = self._encode(prompt)
        skip = len(before) - (before[-1] in self._text.special_tokens.values()) if before else 0
        return EncodedText(tuple(ids), skip=min(skip, len(ids) - 1))

    def _encode(self, text: str) -> list[int]:
        lower = self._settings.get("do_lower_case", False)
        return self._text.encode_for_embedding(
            text.strip(), self._settings.get("max_tokens"), lower
        )

    def _pair(self, pair: Pair, task: str, instruction: Any) -> EncodedText:
        for each in pair:
            check_text(each)
        if self._reranker is not None:
            return EncodedText(tuple(self._reranker.encode(pair, instruction, self._text)))
        if instruction is not None:
            raise BadRequest(
                f"instruction {shown(instruction)}: this model was trained without; leave it out"
            )
        if task == CLASSIFY:  # as Transformers' pipeline: neither stripped nor cut
            return self._typed(self._text.encode_pair(pair))
        limits = (self._text.max_tokens, self._settings.get("max_tokens"), self._arch.max_positions)
        limit = min(limit for limit in limits if limit)
        stripped = (pair[0].strip(), pair[1].strip())
        return self._typed(self._text.encode_pair(stripped, limit))

    def _typed(self, encoded: tuple[list[int], list[int]]) -> EncodedText:
        ids, types = encoded
        if not self._arch.token_types or not any(types):
            return EncodedText(tuple(some(ids)))
        if max(types) >= self._arch.token_types:
            raise BadRequest(
                f"prompt: the tokenizer gives token type {max(types)}, the model has "
                f"{self._arch.token_types}: config.json and the tokenizer do not belong together"
            )
        return EncodedText(tuple(ids), tuple(types))


def _pair(given: Prompt) -> Pair | None:
    """The two texts of a pair, in a tuple or a list; None for other prompts."""
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        return None
    first, second = given[0], given[1]
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None
