"""The protocol's version belongs to what the processes of a plan send each other."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import fields

import numpy as np

from skynet.planning.plan import Plan, ShardPlan, StagePlan
from skynet.tasks import orchestrator, shard
from skynet.wire.exchange_message import FAILED, header_of, tag_of
from skynet.wire.protocol import PROTOCOL
from skynet.wire.scores import Scores, ScoresRequest
from skynet.wire.step import Best, Candidates, LogitsRequest, Part, Row, Step, TextTask, TokenMask

FORMS = {
    1: "3285fccba8d428c9",
    2: "79d24aa254b76559",
    3: "e99c8148268abcb7",
    4: "24c098c29ec8476d",
    5: "24c098c29ec8476d",  # plans may be of float16 weights or int8 activations
}


def digest() -> str:
    """Of one of each message, of the fields of plans and of the arguments of tasks."""
    rows = (
        Row(
            1,
            2,
            (3, 4),
            5,
            LogitsRequest(6, 0.5, 0.7, (8,), 9, TokenMask(bytes(16), b"")),
            10,
            None,
            (11, 12),
        ),
        Row(0, 0, (3,), 1, text_task=TextTask("fill-mask", positions=(1, 2))),
        Row(1, 0, (3, 4), 2, text_task=TextTask("rerank", types=(0, 1), tokens=(5, 6), skip=1)),
        Row(2, 0, (3, 4), 2, scores=ScoresRequest(1, (5,), 6)),
    )
    numbers = np.arange(6, dtype=np.float32)
    best = Best(np.array([3], np.int32), numbers[:1], 0.5)
    scores = Scores(np.array([0.5]), numbers[:1], best.ids[None], numbers[None, :1])
    candidates = [
        Candidates(best.ids, best.logits, 1.0, 2.0, best),
        Candidates(best.ids, best.logits, 1.0, 2.0, None, scores),
    ]
    part = Part(numbers.reshape(2, 3), candidates, 3.0)
    forms: list[object] = [Step(7, 8, rows, 9, 10).encode(), part.encode()]
    forms.append(header_of(tag_of(7, 8, 9, 10), 11, FAILED))
    forms += [[field.name for field in fields(kind)] for kind in (Plan, StagePlan, ShardPlan)]
    tasks = (shard.run_span, shard.advance, orchestrator.finish_step, orchestrator.fail_step)
    forms += [(task.name, list(inspect.signature(task.run).parameters)) for task in tasks]
    return hashlib.sha256(repr(forms).encode()).hexdigest()[:16]


def test_messages_have_the_form_of_this_protocol() -> None:
    # If this fails you have changed a message: raise PROTOCOL and add its form here. Processes of
    # the version before would misread the message; with another number they are kept apart.
    assert FORMS[PROTOCOL] == digest()
    assert max(FORMS) == PROTOCOL
