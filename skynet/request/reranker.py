"""A decoder that ranks: the question that it is asked of a pair of texts, and the tokens of yes and
no. The format is that of Qwen3-Reranker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skynet.errors import BadRequest, CheckpointError
from skynet.request.option_values import shown
from skynet.request.prompts import MAX_PROMPT_CHARACTERS, check_text
from skynet.tokenizer.text import Pair, Text

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QUESTION = "<Instruct>: {}\n<Query>: {}\n<Document>: {}"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
MAX_TOKENS = 8192  # longer questions are cut, as in the model's own example


@dataclass(frozen=True)
class Reranker:
    """max_tokens: of a question with what is around it. answers: the ids of yes and of no; None:
    only the question is known, as for a model that was converted to a classifier."""

    max_tokens: int
    answers: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: Text, max_positions: int, has_head: bool) -> Reranker:
        """
        Raises:
            CheckpointError: the tokenizer has no token for yes or for no.
        """
        limit = min(MAX_TOKENS, max_positions)
        if not has_head:
            return cls(limit)
        ids = [text.encode_inside(word) for word in ("yes", "no")]
        if any(len(each) != 1 for each in ids):
            raise CheckpointError("the tokenizer of this reranker splits yes or no; split again")
        return cls(limit, (ids[0][0], ids[1][0]))

    def encode(self, pair: Pair, instruction: Any, text: Text) -> list[int]:
        """The question of a pair as token ids.

        Raises:
            BadRequest: the instruction is not a text, or too long.
        """
        if pair[0].startswith(PREFIX[:12]):  # it is in this format already
            return text.encode_pair(pair, self.max_tokens)[0]
        instruction = INSTRUCTION if instruction is None else instruction
        if not isinstance(instruction, str) or len(instruction) > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"instruction {shown(instruction)}: expected a text")
        check_text(instruction)
        before, after = (text.encode_inside(part) for part in (PREFIX, SUFFIX))
        question = text.encode_inside(QUESTION.format(instruction, *pair))
        room = max(self.max_tokens - len(before) - len(after), 0)
        return [*before, *question[:room], *after]
