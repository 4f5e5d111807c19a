"""One cluster with the demo model behind one gateway for all clients, and what it has to say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import ENVIRONMENTS
from transformers import AutoModelForCausalLM, PreTrainedModel

from skynet.checkpoint.checkpoint import Checkpoint
from skynet.checkpoint.unpacked import unpacked_directory
from skynet.settings import settings
from skynet.tokenizer.text import Text

sys.path.insert(0, str(Path(__file__).parent.parent / "cluster"))
from processes import command, wait_for

KEY, MODEL = "clients-key-0001", "smollm2"
SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT_S = 120
QUESTION, NEW = "What is the capital of France?", 6
START = (
    "skynet.cli", "serve", "--model", MODEL, "--stages", "1", "--shards", "2", "--dtype", "float32",
    "--weights", "bf16", "--port", "0", "--batch-gib", "0",
)  # fmt: skip

Run = Callable[..., Any]


@dataclass(frozen=True)
class Demo:
    """The demo model in Transformers, with the weights that the cluster has."""

    model: PreTrainedModel
    text: Text

    def answer(self, ids: list[int], num_tokens: int) -> str:
        """Its greedy continuation."""
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            answer = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=num_tokens,
                do_sample=False,
            )
        return self.text.decode(answer[0, len(ids) :].tolist())

    def log_likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Of the continuation, and whether it is the greedy one."""
        whole, start = self.text.encode(context + continuation), len(self.text.encode(context))
        with torch.inference_mode():
            logits = self.model(torch.tensor([whole])).logits[0]
        rows = torch.log_softmax(logits.double(), -1)[start - 1 : -1]
        wanted = torch.tensor(whole[start:])
        chosen = rows.gather(1, wanted[:, None])
        return float(chosen.sum()), bool((rows.argmax(-1) == wanted).all())


@pytest.fixture(scope="session")
def demo(demo_checkpoint: Checkpoint) -> Demo:
    directory = unpacked_directory(demo_checkpoint, settings().cache_dir)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:  # `--weights bf16` rounds matrices
                weight.copy_(weight.to(torch.bfloat16))
    return Demo(model, Text(demo_checkpoint.text_files()))


@pytest.fixture(scope="session")
def greedy(demo: Demo) -> str:
    """What Transformers answers QUESTION with, at most NEW tokens."""
    return demo.answer(demo.text.chat([{"role": "user", "content": QUESTION}]), NEW)


@pytest.fixture(scope="session")
def base_url(
    demo_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """`skynet serve --model`: a cluster of two shards and its gateway."""
    directory = tmp_path_factory.mktemp("served")
    log = directory / "serve.log"
    with command(*START, environment={"SKYNET_API_KEYS": KEY}, log=log, cwd=directory):
        found = wait_for(
            "a gateway that listens",
            lambda: re.search(r"API +(http\S+/v1)", log.read_text(errors="replace")),
            timeout_s=150,
        )
        assert found is not None
        yield found[1]


@pytest.fixture
def run(base_url: str, tmp_path: Path) -> Run:
    """Runs a client's script in its environment; what it prints last, as JSON."""

    def script(client: str, name: str, **more: str) -> Any:
        environment = ENVIRONMENTS[client]
        if not environment.is_there:
            pytest.skip(environment.problem)
        source = SCRIPTS / name
        # Modules are searched from where a program stands: this one comes from standard input.
        words = (
            ["node", "--input-type=module", "-"]
            if environment.is_npm
            else [str(environment.python), str(source)]
        )
        done = subprocess.run(
            words,
            input=source.read_text() if environment.is_npm else None,
            cwd=environment.directory if environment.is_npm else tmp_path,
            env={**os.environ, **variables(base_url, tmp_path), **more},
            capture_output=True,
            text=True,
            timeout=SCRIPT_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    return script


def variables(base_url: str, home: Path) -> dict[str, str]:
    """Where a script finds the gateway; nothing of the developer's own set-up."""
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": KEY,
        "MODEL": MODEL,
        "QUESTION": QUESTION,
        "NEW": str(NEW),
        "HOME": str(home),
        "LLM_USER_PATH": str(home),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": "",
    }
