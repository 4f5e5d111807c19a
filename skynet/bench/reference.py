"""A process that runs Hugging Face `generate`: a JSON line with prompts in, one with speed out."""

from __future__ import annotations

import json
import os
import sys
import time


def main(directory: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    for line in sys.stdin:
        request = json.loads(line)
        prompts, count = torch.tensor(request["prompts"]), request["tokens"]
        started = time.perf_counter()
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
        )
        elapsed = time.perf_counter() - started
        num_tokens = (output.shape[1] - prompts.shape[1]) * output.shape[0]
        print(json.dumps({"tokens_per_s": num_tokens / elapsed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
