"""Each option that changes what is generated, against Transformers, on uneven shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import Cluster, cluster_of
from references import PROMPTS, Reference
from test_engine_parity import InProcess

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence as Generated
from skynet.request.record import Logprobs, Options, Record, Token
from skynet.tokenizer.text import Text

NEW = 20
SHAPES = [(1, 3), (2, 2)]
END_IDS = [17, 44]

# Generation options of Transformers.
CASES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "repetition_reward": {"repetition_penalty": 0.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [60], [77, 3], [1, 2, 3]]},
    "suppress_tokens": {"suppress_tokens": list(range(0, 131, 3))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(60))},
    "forced_eos_token_id": {"forced_eos_token_id": 9},
    "forced_eos_token_ids": {"forced_eos_token_id": [44, 17]},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": END_IDS, "repetition_penalty": 1.3},
    "eos_token_id": {"eos_token_id": END_IDS, "repetition_penalty": 1.3},
    "all": {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 5,
        "eos_token_id": END_IDS,
        "bad_words_ids": [[9], [30, 31]],
        "suppress_tokens": [1, 2, 3],
        "begin_suppress_tokens": list(range(100, 131)),
        "forced_eos_token_id": 44,
    },
}


class Recorder(InProcess):
    """Keeps log-probabilities and answers of beams, and counts the tokens that are computed."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.logprobs: dict[str, list[Logprobs]] = {}
        self.num_computed = 0

    def tokens(self, tokens: list[tuple[Generated, Token]]) -> tuple[set[str], set[str]]:
        for sequence, token in tokens:
            if token.logprobs is not None:
                self.logprobs.setdefault(sequence.id, []).append(token.logprobs)
        return super().tokens(tokens)

    def finished(self, sequence: Generated) -> None:
        super().finished(sequence)
        if sequence.output.pending:
            self.tokens([(sequence, token) for token in sequence.output.pending])


def run(
    model_reference: Reference,
    shape: tuple[int, int],
    records: Sequence[Record],
    end_ids: Sequence[int] = (),
    written: Sequence[int] = (),
) -> Recorder:
    """All records at once, their prompts in chunks."""
    cluster = cluster_of(model_reference.checkpoint, *shape, num_slots=4)
    carrier = Recorder(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=9))
    try:
        for record in records:
            model = ModelInfo(cluster.arch, Text({}), frozenset(end_ids), 128)
            sequence = Generated.of(record, model)
            sequence.output.restore(written)
            engine.accept(sequence)
        engine.ready = True
        engine.pump()
        while engine.in_flight:
            carrier.num_computed += carrier.sent[0].num_tokens
            carrier.deliver(engine)
    finally:
        cluster.close()
    assert set(carrier.ended) == {record.id for record in records}
    return carrier


def record_of(name: str, prompt: Sequence[int], options: Options, sample_group: str = "") -> Record:
    return Record(name, tuple(prompt), options, 0.0, 1e12, sample_group=sample_group)


@lru_cache(maxsize=1)
def model_at(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def generated(path: Path, prompt: Sequence[int], **fields: Any) -> Any:
    ids = torch.tensor([prompt])
    config = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, **fields)
    with torch.no_grad():
        return model_at(path).generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )


@cache
def greedy(path: Path, case: str) -> list[list[int]]:
    """Transformers' answer to each prompt; once for all shapes."""
    return [generated(path, p, **CASES[case])[0, len(p) :].tolist() for p in PROMPTS]


def options_of(fields: dict[str, Any], **more: Any) -> Options:
    eos = fields.get("forced_eos_token_id", [])
    return Options(
        max_tokens=NEW,
        repetition_penalty=fields.get("repetition_penalty", 1.0),
        no_repeat_ngram_size=fields.get("no_repeat_ngram_size", 0),
        min_new_tokens=fields.get("min_new_tokens", 0),
        bad_words_ids=tuple(tuple(word) for word in fields.get("bad_words_ids", ())),
        suppress_tokens=tuple(fields.get("suppress_tokens", ())),
        begin_suppress_tokens=tuple(fields.get("begin_suppress_tokens", ())),
        forced_bos_token_id=fields.get("forced_bos_token_id"),
        forced_eos_token_id=tuple(eos) if isinstance(eos, list) else (eos,),
        **more,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_are_those_of_transformers(
    reference: Callable[..., Reference], case: str, shape: tuple[int, int]
) -> None:
    # Given an option, and Transformers' answers with it
    model_reference, fields = reference("llama"), CASES[case]
    expected = greedy(model_reference.path, case)
    # When all prompts are answered side by side
    records = [record_of(str(n), p, options_of(fields)) for n, p in enumerate(PROMPTS)]
    carrier = run(model_reference, shape, records, fields.get("eos_token_id", ()))
    # Then the tokens are the same, and not those of the plain answers
    assert [carrier.answers[str(number)] for number in range(len(PROMPTS))] == expected
    plain = [
        tokens[: len(changed)]
        for tokens, changed in zip(model_reference.tokens, expected, strict=True)
    ]
    assert expected != plain


def test_the_first_token_after_a_single_one_can_be_forced(
    reference: Callable[..., Reference],
) -> None:
    # Given a prompt of one token, and tokens that may not begin an answer
    model_reference = reference("llama")
    fields = {"forced_bos_token_id": 88, "begin_suppress_tokens": list(range(90))}
    expected = generated(model_reference.path, [5], **fields)[0, 1:].tolist()
    assert expected[0] == 88
    # When / Then
    carrier = run(model_reference, (1, 3), [record_of("0", [5], options_of(fields))])
    assert carrier.answers["0"] == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", [{}, CASES["all"]], ids=["plain", "all"])
def test_log_probabilities_are_of_transformers_raw_logits(
    reference: Callable[..., Reference], case: dict[str, Any], shape: tuple[int, int]
) -> None:
    # Given the logits of Transformers, before its processors
    model_reference, prompt = reference("llama"), PROMPTS[0]
    output = generated(
        model_reference.path, prompt, output_logits=True, return_dict_in_generate=True, **case
    )
    tokens = output.sequences[0, len(prompt) :].tolist()
    expected = torch.cat(output.logits).double().log_softmax(dim=-1).numpy()
    # When they are asked for with five alternatives
    record = record_of("0", prompt, options_of(case, logprobs=5))
    carrier = run(model_reference, shape, [record], case.get("eos_token_id", ()))
    # Then each token has its log-probability, and the best five
    assert carrier.answers["0"] == tokens
    for number, (token, logprobs_of_token) in enumerate(
        zip(tokens, carrier.logprobs["0"], strict=True)
    ):
        assert logprobs_of_token.logprob == pytest.approx(expected[number, token], abs=1e-4)
        ids = [other for other, _ in logprobs_of_token.top]
        assert ids == np.argsort(-expected[number], kind="stable")[:5].tolist()
        assert [value for _, value in logprobs_of_token.top] == pytest.approx(
            expected[number, ids].tolist(), abs=1e-4
        )


def test_seeded_answers_with_rules_do_not_depend_on_the_shape(
    reference: Callable[..., Reference],
) -> None:
    # Given rules and sampling together
    model_reference = reference("llama")
    sampled = [
        options_of(CASES["all"], temperature=0.9, seed=1),
        options_of(CASES["repetition_penalty"], temperature=1.2, top_p=0.9, seed=2),
        options_of(CASES["suppress_tokens"], temperature=1.1, top_k=20, min_p=0.05, seed=3),
    ]
    records = [record_of(str(n), PROMPTS[n], options) for n, options in enumerate(sampled)]
    # When they are answered in several shapes / Then the tokens are the same
    first, *others = [run(model_reference, shape, records).answers for shape in [(1, 1), *SHAPES]]
    assert all(other == first for other in others)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3)], ids=str)
def test_samples_share_their_prompt(
    reference: Callable[..., Reference], shape: tuple[int, int]
) -> None:
    # Given six samples of a prompt on four slots, and each alone
    model_reference, prompt = reference("llama"), PROMPTS[2]
    sampled = [options_of({}, temperature=1.0, seed=seed) for seed in range(6)]
    alone = [run(model_reference, shape, [record_of("0", prompt, o)]).answers["0"] for o in sampled]
    assert len({tuple(tokens) for tokens in alone}) == 6
    # When they are answered together
    records = [record_of(str(n), prompt, options, "0") for n, options in enumerate(sampled)]
    carrier = run(model_reference, shape, records)
    # Then each is as if it were alone
    assert [carrier.answers[str(number)] for number in range(6)] == alone
    # And the prompt was computed once, and its last token by each
    generated_tokens = 6 * (NEW - 1)
    prompts = carrier.num_computed - generated_tokens
    assert prompts == len(prompt) + 5


class Penalties(transformers.LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties over all logits, of the tokens after the prompt."""

    def __init__(self, prompt_length: int, frequency: float, presence: float) -> None:
        self.prompt_length, self.frequency, self.presence = prompt_length, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answers = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, answers, torch.ones_like(answers, dtype=scores.dtype)
        )
        return scores - (self.frequency * counts + self.presence * (counts > 0))


PENALISED: dict[str, dict[str, Any]] = {
    "frequency": {"frequency_penalty": 0.2},
    "presence": {"presence_penalty": 0.4},
    "rewards": {"frequency_penalty": -0.3, "presence_penalty": -0.2},
    "bias": {"logit_bias": ((3, 2.0), (88, -100.0), (130, 1.5))},
    "all": {
        "frequency_penalty": 0.3,
        "presence_penalty": 0.3,
        "logit_bias": ((3, 1.0), (40, 1.0)),
        "repetition_penalty": 1.2,
    },
}


@cache
def penalised(path: Path, case: str, num_beams: int) -> list[list[int]]:
    """Transformers' answer to each prompt, with the penalties over all logits."""
    options, expected = PENALISED[case], []
    bias = {(token,): value for token, value in options.get("logit_bias", ())} or None
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        processor = Penalties(
            len(prompt),
            options.get("frequency_penalty", 0.0),
            options.get("presence_penalty", 0.0),
        )
        with torch.no_grad():
            answer = model_at(path).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=num_beams,
                sequence_bias=bias,
                repetition_penalty=options.get("repetition_penalty", 1.0),
                logits_processor=[processor],
            )
        expected.append(answer[0, len(prompt) :].tolist())
    return expected


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("case", PENALISED)
def test_penalties_and_biases_are_those_of_the_whole_vocabulary(
    reference: Callable[..., Reference], case: str, shape: tuple[int, int], num_beams: int
) -> None:
    # Given the answers of Transformers, with the penalties over all logits
    model_reference, options = reference("llama"), PENALISED[case]
    expected = penalised(model_reference.path, case, num_beams)
    # When all prompts are answered side by side
    chosen = Options(max_tokens=NEW, num_beams=num_beams, **options)
    records = [record_of(str(number), prompt, chosen) for number, prompt in enumerate(PROMPTS)]
    carrier = run(model_reference, shape, records)
    # Then the tokens are the same, and not those of the plain answers
    assert [carrier.answers[str(number)] for number in range(len(PROMPTS))] == expected
    if num_beams == 1:
        assert expected != [tokens[:NEW] for tokens in model_reference.tokens]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_penalties_are_counted_again_after_a_takeover(
    reference: Callable[..., Reference], shape: tuple[int, int]
) -> None:
    # Given an undisturbed answer with penalties
    model_reference, prompt = reference("llama"), PROMPTS[0]
    options = Options(max_tokens=NEW, frequency_penalty=0.3, presence_penalty=0.3)
    whole = run(model_reference, (1, 1), [record_of("0", prompt, options)]).answers["0"]
    # When another orchestrator continues after half of it
    written = whole[: NEW // 2]
    carrier = run(model_reference, shape, [record_of("0", prompt, options)], written=written)
    # Then the rest is the same
    assert [*written, *carrier.answers["0"]] == whole
