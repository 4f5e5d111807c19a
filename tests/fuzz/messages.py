"""Targets of what travels between processes: codec, frames, steps, parts, task arguments."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hiredis
import numpy as np
from celery.exceptions import Ignore

from skynet.chords.backend import check_chord
from skynet.errors import SkynetError
from skynet.exchange.exchange import Exchange
from skynet.exchange.group import Group
from skynet.exchange.link import Link
from skynet.orchestrator.messages import Messages
from skynet.store.resp import RespConnection
from skynet.wire import codec
from skynet.wire.exchange_message import FAILED, header_of, read_message, tag_of
from skynet.wire.frame import HEADER, Frame
from skynet.wire.keys import Address
from skynet.wire.scores import Scores, ScoresRequest
from skynet.wire.step import (
    Best,
    Candidates,
    LogitsRequest,
    Part,
    Row,
    SpanMessage,
    Step,
    TextTask,
    TokenMask,
)
from skynet.wire.typed_json import parse_json
from skynet.worker.plan_follower import Place
from skynet.worker.span_runner import SpanRunner
from skynet.worker.step_guard import StepGuard

sys.path.insert(0, str(Path(__file__).parents[1]))
from engine_fakes import Bench, new_sequence, tiny_plan

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
IDS = np.array([3, 1], dtype=np.int32)


# -- values and frames -----------------------------------------------------------------------------


def read_codec(data: bytes) -> None:
    codec.encode(codec.decode(data))


def codec_seeds() -> Iterator[bytes]:
    yield codec.encode({"x": [1, -2.5, None, True, "text", b"bytes"], "array": FLOATS})
    for dtype in ("<f2", "|b1", "<u8"):
        yield codec.encode(np.zeros((2, 2), dtype))


def read_frame(data: bytes) -> None:
    for frame in (lambda: Frame.decode(data), lambda: Frame.split(data)[0]):
        try:
            frame().copy().sum()
        except SkynetError:
            continue


def frame_seeds() -> Iterator[bytes]:
    yield Frame.of(FLOATS).encode()
    yield Frame.of(np.ones((3, 2), np.uint16)).encode()


TAG = tag_of(1, 2, 3)


@cache
def _exchange() -> Exchange:
    return Exchange(Group(1, 0, 0, 2), "unix:///nowhere")


def read_exchange(data: bytes) -> None:
    """A peer's messages: by Redis, and by a link."""
    mine = Frame.of(FLOATS)
    size = HEADER.size + len(mine.data)
    message = read_message(data, TAG, size)
    if message is not None:
        _exchange()._unpack(1, 0, message, mine).array().sum()
    ends = socket.socketpair()
    try:
        ends[1].sendall(data[:60_000])
        link = Link(ends[0], "unix")
        while (arrived := link.receive(TAG, size)) is not None:
            _exchange()._unpack(1, 0, arrived, mine).array().sum()
    finally:
        for end in ends:
            end.close()


def exchange_seeds() -> Iterator[bytes]:
    encoded = Frame.of(FLOATS).encode()
    late = header_of(tag_of(1, 2, 2), 5) + b"later"
    yield header_of(TAG, len(encoded)) + encoded
    yield late + header_of(TAG, len(encoded)) + encoded
    yield header_of(TAG, 9, FAILED) + b"no memory"


class _Socket:
    """The bytes of a server, in pieces."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def recv_into(self, buffer: bytearray) -> int:
        piece, self.data = self.data[:1000], self.data[1000:]
        buffer[: len(piece)] = piece
        return len(piece)

    def sendall(self, data: bytes) -> None:
        pass


def read_replies(data: bytes) -> None:
    """The replies to two commands."""
    connection = RespConnection("unix:///nowhere", 1)
    connection._connection = SimpleNamespace(disconnect=lambda: None)
    connection._socket = _Socket(data)
    connection._reader = hiredis.Reader()
    connection._used = float("inf")
    connection.call([b"", b""])


def reply_seeds() -> Iterator[bytes]:
    yield b"*2\r\n$1\r\na\r\n$2\r\nbc\r\n:1\r\n"
    yield b"+OK\r\n$-1\r\n"
    yield b"-ERR no\r\n*-1\r\n"


# -- steps and parts -------------------------------------------------------------------------------


def read_step(data: bytes) -> None:
    step = Step.decode(data)
    for row in step.rows:
        if row.logits_request is not None and row.logits_request.mask is not None:
            row.logits_request.mask.bits()
    plan = tiny_plan()
    StepGuard("stage0.shard0", 0).check_step(step, plan, step.number)
    StepGuard("stage0.shard0", 0).admit(step, step.start)
    Step.decode(step.encode())


def step_seeds() -> Iterator[bytes]:
    yield STEP.encode()
    rows = (
        Row(0, 0, (5, 6), 2, LogitsRequest(0, 0.1, 0.7, (1, 2), 3), source=1),
        Row(1, 0, (5,), 1, LogitsRequest(mask=TokenMask.of(bytes(17)))),
        Row(1, 0, (7,), 1, text_task=TextTask("fill-mask", positions=(0,))),
        Row(1, 3, (7,), 1, encoder_kv=(0, 4)),
        Row(2, 0, (5, 6), 2, scores=ScoresRequest(0, (6, 7), 3)),
    )
    yield Step(1, 2, rows, 3, 2).encode()


STEP = Step(1, 0, (Row(0, 0, (1, 5, 7), 3, LogitsRequest()),), 6)


def read_part(data: bytes) -> None:
    part = Part.decode(data)
    Part.decode(part.encode())
    engine = _engine()
    engine.finish_step(engine.plan.epoch, 0, [part, part], 0.0)
    engine.tick()


def part_seeds() -> Iterator[bytes]:
    best = Best(IDS, FLOATS[0, :2], 2.0)
    yield Part(FLOATS, compute_s=0.5).encode()
    yield Part(None, [Candidates(IDS, FLOATS[0, :2], 1.0, 1.5)]).encode()
    yield Part(None, [Candidates(IDS, FLOATS[0, :2], 1.0, 1.5, best)], 0.1, 0.2).encode()
    scores = Scores(np.zeros(2), FLOATS[0, :2], IDS[:, None], FLOATS[:, :1])
    yield Part(None, [Candidates(IDS, FLOATS[0, :2], 1.0, 1.5, best, scores)]).encode()
    yield Part(None, vectors=[FLOATS[0]]).encode()


# -- task arguments --------------------------------------------------------------------------------


class _Client:
    """A Redis without keys."""

    def mget(self, names: list[str]) -> list[None]:
        return [None for _ in names]

    def get(self, name: str) -> None:
        return None

    def register_script(self, text: str) -> None:
        return None

    def exists(self, name: str) -> int:
        return 0


@cache
def _runner() -> SpanRunner:
    messenger = SimpleNamespace(emit_chord=lambda *_, **__: None)
    follower: Any = SimpleNamespace(
        epoch=1, member=SimpleNamespace(id="m", steps=0, state="ready", problem="")
    )
    runner = SpanRunner(
        SimpleNamespace(messenger=messenger),  # type: ignore[arg-type]
        _Client(),  # type: ignore[arg-type]
        follower,
        lambda: None,
    )
    runner._compute = lambda *_: Part(FLOATS)  # type: ignore[method-assign]
    return runner


def _placed() -> SpanRunner:
    runner, plan = _runner(), tiny_plan(stages=2)
    address = Address(0, 0)
    guard = StepGuard(str(address), 0)
    runner.plan_follower.place = Place(plan, address, None, None, guard)  # type: ignore[arg-type]
    return runner


STALE = (SkynetError, Ignore)
REQUEST = SimpleNamespace(delivery_info={"routing_key": "stage0.shard0"}, group="1.0.0")


def read_span(data: bytes) -> None:
    """The arguments of `skynet.run_span`, then of `skynet.advance` for the same step."""
    arguments = codec.decode(data)
    if not isinstance(arguments, list) or not 4 <= len(arguments) <= len(SpanMessage._fields):
        return  # Celery reports a wrong number of arguments
    runner = _placed()
    try:
        runner.run(REQUEST, SpanMessage(*arguments))
    except (SkynetError, Ignore):
        pass
    number = next(iter(runner.plan_follower.place.guard.steps), 0)  # type: ignore[union-attr]
    parts = [Part(FLOATS).encode(), arguments[-1]]
    runner.advance(parts, SpanMessage(1, number, *arguments[2:4]), 0.0)


def span_seeds() -> Iterator[bytes]:
    yield codec.encode([1, 0, 0, 3, STEP.encode()])
    yield codec.encode([1, 0, 2, 3, STEP.encode(), Frame.of(FLOATS).encode(), ""])
    yield codec.encode([1, 0, 2, 2, STEP.encode(), Part(FLOATS).encode()])


def _engine() -> Any:
    """With one step in flight."""
    bench = Bench()
    bench.engine.accept(new_sequence("r", [1, 5, 7]))
    return bench.engine


def read_finish(data: bytes) -> None:
    """The arguments of `skynet.finish_step`, and of `skynet.fail_step`."""
    arguments = codec.decode(data)
    if not isinstance(arguments, list) or not 4 <= len(arguments) <= 5:
        return
    engine = _engine()
    leader: Any = SimpleNamespace(
        service=SimpleNamespace(engine=engine),
        epoch=engine.plan.epoch,
        context=SimpleNamespace(fence="1:me"),
        election=SimpleNamespace(leadership=SimpleNamespace(holder=lambda: "1:me")),
    )
    messages = Messages(leader)
    messages.handle("finish_step", *arguments)
    messages.handle("fail_step", *arguments[1:], *arguments[:1])


def finish_seeds() -> Iterator[bytes]:
    parts = list(part_seeds())[1:2] * 2
    yield codec.encode([parts, 1, 0, 0.5])
    yield codec.encode([parts, 1, 0, 0.5, ""])


def read_chord(data: bytes) -> None:
    """The headers `group`, `group_index` and `chord` of a task."""
    value = parse_json(data, "headers")
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], dict):
        return
    check_chord(SimpleNamespace(group=value[0], group_index=value[1], chord=value[2]))


def chord_seeds() -> Iterator[bytes]:
    yield (
        b'["1.0.0", 0, {"task": "skynet.finish_step", "args": [1, 0, 6, 0.5, ""], '
        b'"options": {"queue": "orchestrator"}, "chord_size": 2}]'
    )
