"""Structured output in tests: a tiny model with a real tokenizer, and Transformers under a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from harness import cluster_of
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from made_tokenizers import byte_level
from references import Reference
from test_engine_parity import InProcess
from tokenizers import Tokenizer

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.grammar import Constraint, Grammars
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence as EngineSequence
from skynet.request.record import Options, Record
from skynet.request.structured import grammar_of, structured_text
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer
from skynet.tokenizer.text import Text

SHAPES = [(1, 1), (1, 2), (2, 2), (2, 3)]
END = 1
VOCAB_SIZE = 431  # more than the tokenizer has, and not a multiple of 8
PROMPTS = [[70, 300, 12, 5, 99], [88, 89], [200, 201, 202, 7, 8, 9, 10, 11, 12, 13, 14]]
TOKENIZER = byte_level("<s>", "</s>")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LISTS = 'start: list\nlist: "[" (item ("," item)*)? "]"\nitem: /[0-9]{1,3}/ | list'
OPTIONS: list[dict[str, Any]] = [
    {"json": PERSON},
    {"json_object": True},
    {"json": PERSON, "whitespace": True},
    {"regex": r"[a-zé ]{3,12}\.(jpg|png)"},
    {"choice": ["yes", "yes, but", "no"]},
    {"grammar": LISTS},
]


def text_of(ids: Sequence[int]) -> str:
    return str(Tokenizer.from_str(TOKENIZER).decode(list(ids)))


def answers(
    reference: Reference, shape: tuple[int, int], options: Sequence[Options]
) -> list[tuple[list[int], str]]:
    """The tokens and the finish reason of a request for each of the options."""
    cluster = cluster_of(reference.checkpoint, *shape, num_slots=4, slot_tokens=256)
    carrier = InProcess(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=16))
    engine.ready = True
    grammars = Grammars(TOKENIZER, VOCAB_SIZE, {END})
    text = Text({FILE: StagedTokenizer(backend=TOKENIZER).to_json()})
    model = ModelInfo(reference.checkpoint.arch, text, frozenset({END}), 256)
    try:
        for number, chosen in enumerate(options):
            prompt = tuple(PROMPTS[number % len(PROMPTS)])
            sequence = EngineSequence.of(Record(str(number), prompt, chosen, 0.0, 1e12), model)
            matcher = grammars.compile(chosen.structured_outputs or "").result()
            sequence.output.constraint = Constraint(matcher, VOCAB_SIZE)
            engine.accept(sequence)
            carrier.deliver(engine)
        while engine.in_flight:
            carrier.deliver(engine)
    finally:
        cluster.close()
    numbers = map(str, range(len(options)))
    return [(carrier.answers[number], carrier.ended[number]) for number in numbers]


@cache
def masked_greedy(path: Path, number: int, count: int) -> list[int]:
    """Transformers' likeliest allowed tokens: its float32 logits under llguidance's own mask."""
    prompt, option = PROMPTS[number % len(PROMPTS)], OPTIONS[number]
    model = transformers.AutoModelForCausalLM.from_pretrained(path).float().eval()
    tokenizer = LLTokenizer(TOKENIZER, n_vocab=VOCAB_SIZE, eos_token=[END])
    matcher = LLMatcher(tokenizer, grammar_of(structured_text(option)))
    tokens: list[int] = []
    while len(tokens) < count and not matcher.is_stopped():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, -1].numpy()
        bits = allocate_token_bitmask(1, VOCAB_SIZE)
        fill_next_token_bitmask(matcher, bits)
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:VOCAB_SIZE]
        tokens.append(int(np.argmax(np.where(allowed == 1, logits, -np.inf))))
        assert matcher.consume_token(tokens[-1])
    return tokens
