"""Targets of what Redis's keys hold: requests, plans, targets, manifests, members, events."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from skynet.orchestrator.membership import Membership
from skynet.orchestrator.target_plans import TargetPlans
from skynet.planning.plan import Plan
from skynet.request.options import check_record
from skynet.request.record import End, Logprobs, Options, Record, Token
from skynet.store.bad_tiles import reported_tiles
from skynet.store.events import Events
from skynet.store.manifest import Manifest, StagedTensor, Tile
from skynet.store.members import Member
from skynet.store.targets import Target
from tests.fuzz.fields import pack, unpack

sys.path.insert(0, str(Path(__file__).parents[1]))
from engine_fakes import TINY, new_sequence, seq2seq_plan, tiny_plan

RECORD_FIELDS = [
    "prompt",
    "options",
    "created",
    "deadline",
    "state",
    "emitted",
    "model",
    "priority",
    "family",
    "arrival",
    "cancel",
    "end",
    "started_at",
    "first_token_at",
    "last_token_at",
    "annotations",
    "traceparent",
]
TOKEN_FIELDS = ("i", "t", "p", "l", "end")


def read_record(data: bytes) -> None:
    fields = unpack(data, RECORD_FIELDS)
    record = Record.from_fields("r", {name.encode(): value for name, value in fields.items()})
    check_record(record, TINY.vocab_size, TINY.vocab_size)
    repr(record.options)
    sequence = new_sequence("r", record.prompt, **record.options.__dict__)
    sequence.take_place(list(range(sequence.mode.num_slots)), None)
    sequence.rows(4)


def record_seeds() -> Iterator[bytes]:
    options = (
        Options(),
        Options(temperature=0.5, seed=2**64 - 1, stop=("a",), top_k=3, logprobs=2),
        Options(num_beams=3, early_stopping="never", bad_words_ids=((1, 2), (3,))),
        Options(max_tokens=0, read={"task": "fill-mask", "pooling": "mean", "normalize": False,
                                    "positions": [1], "top": 5}),
    )  # fmt: skip
    for each in options:
        record = Record("r", (1, 5, 7), each, 1.5, 2.5)
        fields = {name: _bytes(value) for name, value in record.fields().items()}
        yield pack({**fields, "arrival": b"3", "end": b'{"text": ""}'}, RECORD_FIELDS)


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def read_token(data: bytes) -> None:
    fields = {name.encode(): value for name, value in unpack(data, TOKEN_FIELDS).items()}
    token = Token.from_fields(fields)
    new_sequence("r", [1], max_tokens=4).output.restore([token.id])
    if b"end" in fields:
        End.from_json(fields[b"end"]).to_json()


def token_seeds() -> Iterator[bytes]:
    logprobs = Logprobs(-0.5, ((3, -0.5), (4, -1.0)))
    end = End("x", "stop", timings={"total_s": 0.5}, answer={"beams": []})
    fields = {"i": "0", "t": "5", "p": "ab", "l": logprobs.to_json(), "end": end.to_json()}
    yield pack({name: value.encode() for name, value in fields.items()}, TOKEN_FIELDS)


def read_plan(data: bytes) -> None:
    plan = Plan.from_json(data)
    plan.summary()
    plan.placed()
    plan.chords_of(plan.encoder_layers, 2)
    if Plan.from_json(plan.to_json()) != plan:
        raise AssertionError("a plan reads differently when it is written again")


def plan_seeds() -> Iterator[bytes]:
    yield tiny_plan(2, 2).with_epoch(3).to_json().encode()
    yield seq2seq_plan().to_json().encode()


def read_target(data: bytes) -> None:
    """And the plan for it."""
    target = Target.from_json(data)
    plans = TargetPlans(TINY, target)
    plans.planner().decide(
        None, _candidates([asdict(m) for m in _members()]), settled_for_s=1.0, lost_for_s=0.0
    )


def target_seeds() -> Iterator[bytes]:
    yield Target.of(tiny_plan(1, 1)).to_json().encode()
    yield Target.of(tiny_plan(), any_shape=True).to_json().encode()


def read_manifest(data: bytes) -> None:
    manifest = Manifest.from_json(data)
    list(manifest.tile_names())
    manifest.to_json()


def manifest_seeds() -> Iterator[bytes]:
    tensors = {
        "a": StagedTensor((4, 2), "float32", 0, (Tile(0, 2, 7), Tile(2, 4, 8))),
        "b": StagedTensor((3,), "bfloat16", 0, (Tile(0, 3, 9),)),
    }
    config = {"model_type": "llama", "hidden_size": 48}
    yield Manifest("d", "tiny", config, tensors, ("tokenizer.json",), 38).to_json().encode()


def read_member(data: bytes) -> None:
    """And the plan with this member."""
    member = Member.from_json(data)
    json.dumps(asdict(member))
    target = Target.of(tiny_plan(), any_shape=True)
    members = [asdict(m) for m in (member, *_members())]
    TargetPlans(TINY, target).planner().decide(
        None, _candidates(members), settled_for_s=60.0, lost_for_s=0.0
    )


@cache
def _members() -> list[Member]:
    gigabyte = 2**30
    return [
        Member(name, name, "", "here", 7, cores=2, speed=5e9, free_bytes=gigabyte)
        for name in ("a", "b")
    ]


def _candidates(members: list[dict[str, Any]]) -> Any:
    listed = [Member(**fields) for fields in members]
    store: Any = SimpleNamespace(all=lambda: listed, broken=lambda _: set())
    membership = Membership(store, lambda *_: None)
    membership.look()
    membership.load_rate()
    return membership.candidates()


def member_seeds() -> Iterator[bytes]:
    for member in _members():
        yield json.dumps(asdict(member)).encode()


def read_log(data: bytes) -> None:
    """Entries of the event log, and reports of bad tiles."""
    fields = {name.encode(): value for name, value in unpack(data, ("k", "t", "d")).items()}
    client: Any = SimpleNamespace(
        xrevrange=lambda *_, **__: [(b"1-0", fields)], lrange=lambda *_: [data]
    )
    Events(client).latest(5)
    reported_tiles(client, "d")


def log_seeds() -> Iterator[bytes]:
    yield pack({"k": b"joined", "t": b"x", "d": b"0.5"}, ("k", "t", "d"))
    yield b'["model.embed", 3]'
