"""The engine over real layers, in one process: the same text whatever the shape of the cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from harness import Cluster, cluster_of
from references import NEW_TOKENS, OUTGROWN, PROMPTS, Reference

from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.errors import SkynetError
from skynet.request.record import Options, Record, Token
from skynet.tokenizer.text import Text
from skynet.wire.step import Part, Step

SAMPLED = [
    Options(max_tokens=20, temperature=0.8, seed=1),
    Options(max_tokens=15, temperature=1.3, top_k=7, seed=2),
    Options(max_tokens=20, temperature=0.7, top_p=0.9, seed=3),
    Options(max_tokens=10, temperature=2.0, top_k=40, top_p=0.8, seed=4),
    Options(max_tokens=20, temperature=1.0, top_p=0.5, seed=2**64 - 1),
]


class InProcess:
    """Carrier and journal over the harness; steps come back in the order they were sent."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.sent: deque[Step] = deque()
        self.answers: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.running: list[str] = []

    def send(self, step: Step) -> None:
        self.sent.append(step)

    def give_up(self, step: Step) -> None:
        raise AssertionError(f"step {step.number} was given up")

    def step_failed(self, error: SkynetError) -> None:
        raise error

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """Nothing is."""

    def started(self, sequences: list[Sequence]) -> None:
        self.running += [sequence.id for sequence in sequences]

    def tokens(self, tokens: list[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        for sequence, token in tokens:
            self.answers.setdefault(sequence.id, []).append(token.id)
        return set(), set()

    def finished(self, sequence: Sequence) -> None:
        self.ended[sequence.id] = sequence.finish_reason

    def failed(self, sequence: Sequence, error: SkynetError) -> None:
        raise error

    def deliver(self, engine: Engine) -> None:
        """Compute the oldest step and bring its parts back."""
        step = self.sent.popleft()
        results = self.cluster.results(step.rows, step.layers_per_chord, step.start)
        parts = [Part(None, candidates, 0.001, 0.0, vectors) for _, candidates, vectors in results]
        engine.finish_step(step.epoch, step.number, parts)


def answers(
    model_reference: Reference,
    stages: int,
    shards: int,
    options: list[Options],
    budget: int,
    span: str,
) -> list[list[int]]:
    """One request for each of the options, joining one step after the other."""
    cluster = cluster_of(model_reference.checkpoint, stages, shards, chord_span=span, num_slots=4)
    carrier = InProcess(cluster)
    engine = Engine(cluster.plan, carrier, carrier, EngineOptions(max_batch_tokens=budget))
    engine.ready = True
    try:
        for number, chosen in enumerate(options):
            prompt = tuple(PROMPTS[number % len(PROMPTS)])
            record = Record(str(number), prompt, chosen, 0.0, 1e12)
            model = ModelInfo(model_reference.checkpoint.arch, Text({}), frozenset(), 128)
            engine.accept(Sequence.of(record, model))
            carrier.deliver(engine)
        while engine.in_flight:
            carrier.deliver(engine)
    finally:
        cluster.close()
    assert set(carrier.ended.values()) == {"length"}
    assert sorted(carrier.running) == sorted(carrier.ended)
    return [carrier.answers[str(number)] for number in range(len(options))]


@pytest.mark.parametrize("span", ["layer", "stage", "auto"])
@pytest.mark.parametrize(("stages", "shards"), [(1, 1), (1, 2), (2, 2), (2, 3)])
def test_greedy_answers_are_those_of_transformers(
    reference: Callable[..., Reference], stages: int, shards: int, span: str
) -> None:
    # Given requests of different lengths and room for a few tokens a step
    model_reference = reference("llama")
    # When they join while others run
    greedy = [Options(max_tokens=NEW_TOKENS)] * len(PROMPTS)
    # Then each has the answer of Transformers
    assert answers(model_reference, stages, shards, greedy, 7, span) == model_reference.tokens


@pytest.mark.parametrize(("stages", "shards", "budget"), [(1, 1, 512), (1, 2, 6), (2, 2, 9)])
def test_sequences_may_be_longer_than_the_pretraining_context(
    reference: Callable[..., Reference], stages: int, shards: int, budget: int
) -> None:
    # Given a rope that turns long sequences otherwise, from their first token on
    model_reference = reference("phi3", **OUTGROWN)
    assert model_reference.checkpoint.arch.rope_switch == 16
    # When they are answered / Then as Transformers does, which computes them again as well
    greedy = [Options(max_tokens=NEW_TOKENS)] * len(PROMPTS)
    assert (
        answers(model_reference, stages, shards, greedy, budget, "auto") == model_reference.tokens
    )


def test_seeded_answers_do_not_depend_on_the_shape(reference: Callable[..., Reference]) -> None:
    # Given requests that sample in every way, more than there are slots
    model_reference = reference("llama")
    # When they are answered in several shapes, steps of several sizes
    shapes = [(1, 1, 512), (1, 2, 5), (2, 2, 16), (2, 3, 9)]
    results = [answers(model_reference, *shape[:2], SAMPLED, shape[2], "auto") for shape in shapes]
    # Then the text is the same everywhere
    assert all(result == results[0] for result in results)
    assert [len(tokens) for tokens in results[0]] == [20, 15, 20, 10, 20]
    # And another seed gives another one
    other = [Options(max_tokens=20, temperature=0.8, seed=99)]
    assert answers(model_reference, 1, 1, other, 512, "auto")[0] != results[0][0]
