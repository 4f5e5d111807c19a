"""Every reader of foreign bytes, on valid inputs, past findings and a fixed set of mutations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import guard
from tests.fuzz.fields import pack, unpack
from tests.fuzz.mutation import mutate
from tests.fuzz.target import CORPUS, Target
from tests.fuzz.targets import BY_NAME, TARGETS

MUTATIONS = 150
SEED = 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_reader_raises_no_error_but_skynets(target: Target) -> None:
    inputs, chance = target.inputs(), random.Random(SEED)
    mutated = [mutate(chance.choice(inputs), inputs, chance) for _ in range(MUTATIONS)]
    for data in [*inputs, *mutated]:
        finding = guard.run(target, data)
        assert finding is None, finding.trace


def test_every_past_finding_belongs_to_a_target() -> None:
    names = {file.name.rpartition("-")[0] for file in CORPUS.iterdir()}
    assert names
    assert names <= BY_NAME.keys()


def test_a_finding_is_saved_and_named_after_its_place(tmp_path: Path) -> None:
    # Given a reader with a fault
    target = Target("faulty", lambda data: {}[data], lambda: [b"x"])
    # When an input meets it
    finding = guard.run(target, b"x")
    # Then it tells the place, and the input can be replayed
    assert finding is not None
    assert finding.where.startswith("KeyError at ")
    assert guard.run(target, finding.save(tmp_path / "new").read_bytes()) == finding


def test_fields_are_packed_and_unpacked() -> None:
    fields = {"b": b"1", "a": b"", "c": b"x" * 300}
    assert unpack(pack(fields, "abc"), "abc") == fields
    assert unpack(b"\x00\x01", "abc") == {}
