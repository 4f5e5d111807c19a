"""turns: time to the first token of a chat's second turn, against that of its first turn."""

from __future__ import annotations

import os
import random

from skynet.bench.report import Result
from skynet.local.cluster import LocalCluster

MODEL = "smollm2"
FIRST_TOKENS, ANSWER_TOKENS, NEW_TOKENS = 1000, 32, 20


def turns(rounds: int) -> Result:
    """A chat of 1,000 tokens: 1 stage x 2 shards; each round is a new chat, after a warm-up."""
    samples: dict[str, list[float]] = {"second turn": [], "first turn": []}
    cached: list[int] = []
    draw = random.Random(0)
    with LocalCluster(MODEL, stages=1, shards=2) as cluster:
        for number in range(rounds + 1):
            prompt = [draw.randrange(100, 40_000) for _ in range(FIRST_TOKENS)]
            first = cluster.submit_prompt(prompt, max_tokens=ANSWER_TOKENS, ignore_eos=True).get()
            new = [draw.randrange(100, 40_000) for _ in range(NEW_TOKENS)]
            following = [*prompt, *first.token_ids, *new]
            second = cluster.submit_prompt(following, max_tokens=1).get()
            if number:
                samples["second turn"].append(second.timings["first_token_s"])
                samples["first turn"].append(first.timings["first_token_s"])
                cached.append(second.cached_tokens)
    length = FIRST_TOKENS + ANSWER_TOKENS + NEW_TOKENS
    what = f"first token after {FIRST_TOKENS} and {length} tokens, {os.cpu_count()} cores"
    notes = {"cached tokens": f"{min(cached)} of {length} in the second turn"}
    return Result("turns", what, "s", samples, target=("<=", 0.125), notes=notes)
