"""Text tasks in the engine: one step each, uncut, batched, and repeated after a loss."""

from __future__ import annotations

import numpy as np
import pytest
from engine_fakes import Bench, FakeShards, answer, new_sequence
from model_families import encoder_config

from skynet.engine.sequence import Sequence
from skynet.errors import PeerLost, RequestCancelled, RequestTimeout
from skynet.models.registry import load_architecture
from skynet.wire.step import Step

ARCH = load_architecture(encoder_config("bert", "Model"))


class PoolingShards(FakeShards):
    """The first shard returns the vector (number of tokens, sum of tokens)."""

    def send(self, step: Step) -> None:
        super().send(step)
        rows = [row.tokens for row in step.rows if row.text_task is not None]
        self._parts[step.number][0].vectors = [np.array([len(t), sum(t)], np.float32) for t in rows]


def text(name: str, tokens: list[int], **options: float) -> Sequence:
    return new_sequence(name, tokens, arch=ARCH, read={"task": "embed", "positions": []}, **options)


@pytest.fixture
def bench() -> Bench:
    made = Bench(max_batch_tokens=8)
    made.shards = made.engine.carrier = PoolingShards()
    return made


def test_texts_share_steps_and_are_never_cut(bench: Bench) -> None:
    # Given a busy engine, texts longer and shorter than a batch, and a generation
    sizes = {"a": 3, "b": 20, "c": 2, "d": 3, "e": 5}
    texts = {name: text(name, [1] * size) for name, size in sizes.items()}
    bench.engine.accept(new_sequence("first", [1, 2], max_tokens=3))
    for sequence in texts.values():
        bench.engine.accept(sequence)
    # When
    bench.run()
    # Then each is answered, in one step each, of which some are shared
    for name, size in sizes.items():
        assert texts[name].output.answer == {"embedding": [size, size]}
        assert bench.notes.ended[name] == "stop"
    assert bench.notes.written == {"first": answer([1, 2], 3)}
    rows = [[row for row in step.rows if row.text_task] for step in bench.shards.sent]
    assert sorted(len(row.tokens) for step in rows for row in step) == sorted(sizes.values())
    assert max(len(step) for step in rows) > 1
    # And texts of one length follow each other
    assert all(
        [len(r.tokens) for r in step] == sorted(len(r.tokens) for r in step) for step in rows
    )


def test_a_lost_step_is_repeated(bench: Bench) -> None:
    # Given a text whose step is lost
    sequence = text("a", [1, 2, 3])
    bench.engine.accept(sequence)
    bench.engine.fail_step(1, 0, PeerLost("gone"))
    # When the engine goes on with another plan
    bench.recover()
    bench.run()
    # Then it has its answer
    assert sequence.output.answer == {"embedding": [3, 6]}
    assert bench.notes.ended == {"a": "stop"}


def test_a_text_task_can_be_cancelled_and_time_out(bench: Bench) -> None:
    # Given texts that wait for a plan
    bench.engine.suspend()
    bench.engine.accept(text("a", [1]))
    bench.engine.accept(text("b", [1], deadline=-1.0))
    # When
    bench.engine.cancel("a")
    bench.engine.tick()
    # Then
    assert isinstance(bench.notes.ended["a"], RequestCancelled)
    assert isinstance(bench.notes.ended["b"], RequestTimeout)
