"""`--dtype int8`: answers are those of Transformers with activations rounded where shards round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import Cluster, full_logits, last_logits
from plans import plan_for
from quantised_models import QuantisedModel
from references import PROMPTS, save_random_model

from skynet.check import check_model
from skynet.errors import PlanError
from skynet.kernels.library import kernels
from skynet.layers.int8_activations import rounded
from skynet.wire.step import LogitsRequest, Row
from tests.gguf_files import write_random_gguf

SIZES: dict[str, Any] = {"intermediate_size": 96}
SHAPES = [(1, 1, 99), (1, 2, 99), (2, 2, 1)]
# Of logits, in shares of what rounding the activations changes: a sum in another order may move a
# number to the next code. Where it moves none, the difference is that of float32's rounding.
MOVED, CLOSE = 0.5, 0.001


@dataclass(frozen=True)
class Rounded:
    """A model with quantised weights, and Transformers' logits for float32 and int8 activations."""

    model: QuantisedModel
    exact: list[np.ndarray]
    logits: list[np.ndarray]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Rounded]:
    """Makes a Llama with q4 or q8 weights; each once."""
    made: dict[str, Rounded] = {}

    def make(weights: str) -> Rounded:
        if weights not in made:
            directory = tmp_path_factory.mktemp("model")
            save_random_model("llama", SIZES, directory)
            model = QuantisedModel(directory, weights)
            plain = model.dequantised(directory, directory / "plain")
            loaded = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
            exact = logits_of(loaded)
            for tensor, form in model.arch.formats.items():
                module = loaded.get_submodule(tensor.removesuffix(".weight"))
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_pre_hook(rounding(form.group))
            made[weights] = Rounded(model, exact, logits_of(loaded))
        return made[weights]

    return make


def rounding(group: int) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (rounded(args[0], group), *args[1:])

    return hook


def logits_of(model: Any) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0, -1].numpy() for prompt in PROMPTS]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize(("stages", "shards", "span"), SHAPES)
@pytest.mark.parametrize("weights", ["q4", "q8"])
def test_logits_are_those_of_rounded_activations(
    models: Callable[[str], Rounded], weights: str, stages: int, shards: int, span: int
) -> None:
    # Given a model with quantised weights, and Transformers' logits for rounded activations
    tiny = models(weights)
    # When it runs split, in int8
    cluster = Cluster(tiny.model, plan_for(tiny.model.arch, stages, shards, dtype="int8"))
    try:
        results = [last_logits(cluster, tiny.model.arch, prompt, span) for prompt in PROMPTS]
    finally:
        cluster.close()
    # Then the logits are those, and not those of float32 activations
    shares = [
        difference(result, expected) / difference(exact, expected)
        for result, exact, expected in zip(results, tiny.exact, tiny.logits, strict=True)
    ]
    assert max(shares) < MOVED
    assert min(shares) < CLOSE


@pytest.mark.skipif(kernels() is None, reason="PyTorch's products depend on the number of rows")
@pytest.mark.parametrize("weights", ["q4", "q8"])
def test_a_row_is_rounded_alone(models: Callable[[str], Rounded], weights: str) -> None:
    # Given the prompts in slots of a model split in int8
    arch = models(weights).model.arch
    cluster = Cluster(models(weights).model, plan_for(arch, 1, 2, dtype="int8"))
    wish = LogitsRequest(top=0)
    rows = [Row(slot, len(prompt), (7,), len(prompt), wish) for slot, prompt in enumerate(PROMPTS)]
    try:
        for slot, prompt in enumerate(PROMPTS):
            cluster.step([Row(slot, 0, tuple(prompt), len(prompt))], 99)
        # When each takes a token, all together and one by one
        together = cluster.step(rows, 99)
        alone = [cluster.step([row], 99)[0] for row in rows]
    finally:
        cluster.close()
    # Then the logits have the same bits
    for one, other in zip(together, alone, strict=True):
        first, second = (full_logits(shards, arch.vocab_size) for shards in (one, other))
        assert np.array_equal(first, second)


def test_check_says_that_answers_are_rounded(tmp_path: Path) -> None:
    # Given a file with quantised weights, and a checkpoint without
    quantised, numbers = tmp_path / "quantised.gguf", tmp_path / "numbers"
    write_random_gguf(quantised, "llama", "Q4_0", head="Q6_K")
    save_random_model("llama", SIZES, numbers)
    # When the first is compared in int8
    report = check_model(str(quantised), 1, 2, dtype="int8")
    # Then it is equal up to that rounding, and the report says so
    assert report.equal
    assert report.promise == "rounded by int8 activations"
    # And the other one is refused
    with pytest.raises(PlanError, match="no quantised weights"):
        check_model(str(numbers), 1, 2, dtype="int8")
