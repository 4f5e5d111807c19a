"""A running cluster under attack by a client that writes nonsense under SkyNet's names.

After each attack the same processes answer the next prompt with the right tokens.
"""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from checkpoints import Tiny
from processes import wait_for

from skynet.errors import SkynetError
from skynet.local.cluster import LocalCluster
from skynet.planning.plan import Plan
from skynet.store.plans import Plans
from skynet.wire import codec, keys
from skynet.wire.step import LogitsRequest, Part, Row, Step

pytestmark = pytest.mark.cluster
SEED = 20261128
MAX_QUEUED = 4  # messages of an attack in a queue: more of them starve the requests


@pytest.fixture(scope="module")
def chance() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def attacked(cluster: LocalCluster, tiny: Tiny) -> Iterator[redis.Redis]:
    """A client of the cluster; afterwards the cluster must answer, by the same processes."""
    before = _pids(cluster)
    logs = {log: log.stat().st_size for log in _logs(cluster)}
    yield cluster.client.redis
    for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True):
        answer = cluster.submit_prompt(prompt, max_tokens=len(tokens)).get(timeout=120)
        assert answer.token_ids == tokens
    assert cluster.processes.failed() == []
    assert _pids(cluster) == before
    for log, size in logs.items():
        assert b"Unrecoverable error" not in log.read_bytes()[size:]


def _pids(cluster: LocalCluster) -> dict[str, int]:
    return {worker.address: worker.pid for worker in cluster.workers}


def _logs(cluster: LocalCluster) -> list[Path]:
    return [cluster.processes._log_of(name) for name in cluster.processes.by_name]


def _logged(cluster: LocalCluster, text: str) -> None:
    """Wait until a worker has logged this text."""
    wait_for(
        f"{text!r} in a log",
        lambda: any(text in log.read_text(errors="replace") for log in _logs(cluster)),
    )


def _plan(client: redis.Redis) -> Plan:
    plan = Plans(client).current()
    assert plan is not None
    return plan


def _queues(client: redis.Redis) -> list[str]:
    """Their Redis keys."""
    addresses = [str(keys.Address(*address)) for address in _plan(client).addresses()]
    return [keys.queue_key(queue) for queue in (*addresses, keys.ORCHESTRATOR_QUEUE)]


def _message(task: Any, args: Any, **changes: Any) -> bytes:
    """A message as Celery's, with fields replaced; None leaves one out."""
    headers = {"lang": "py", "task": task, "id": "x", "root_id": "x", "parent_id": None}
    headers |= {"group": None, "argsrepr": "", "kwargsrepr": "", "retries": 0}
    message = {
        "body": b64encode(codec.encode([args, {}, {}])).decode(),
        "content-encoding": "binary",
        "content-type": codec.CONTENT_TYPE,
        "headers": headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "tag",
            "delivery_info": {"exchange": "", "routing_key": "x"},
        },
    }
    message |= changes
    return json.dumps(
        {name: value for name, value in message.items() if value is not None}
    ).encode()


# -- queues ----------------------------------------------------------------------------------------


def test_items_of_queues_that_are_no_messages_are_dropped(
    cluster: LocalCluster, attacked: redis.Redis, chance: random.Random
) -> None:
    # Given items that are no JSON, no messages, or messages with fields of other types
    whole = _message(keys.RUN_SPAN_TASK, [1, 2, 3, 4])
    items = [b"", b"nonsense", b"[]", b"7", b"null", b"{}", b"[" * 5000, chance.randbytes(300)]
    items += [_message(keys.RUN_SPAN_TASK, [], **{name: None}) for name in json.loads(whole)]
    items += [
        _message(keys.RUN_SPAN_TASK, [], **{name: value})
        for name in json.loads(whole)
        for value in (7, [1], {"a": 1}, "text")
    ]
    # When every queue gets all of them
    for queue in _queues(attacked):
        attacked.lpush(queue, *items)
    # Then they are gone, and the log names what was dropped
    wait_for("empty queues", lambda: not any(attacked.llen(queue) for queue in _queues(attacked)))
    _logged(cluster, "dropped an item that is not JSON")
    _logged(cluster, ": dropped ")


def test_unknown_tasks_and_other_contents_are_refused(
    cluster: LocalCluster, attacked: redis.Redis
) -> None:
    # Given a task that does not exist, one in pickle, and wrong arguments of SkyNet's tasks
    pickled = {"content-type": "application/x-python-serialize"}
    items = [_message("os.system", ["true"]), _message(keys.RUN_SPAN_TASK, [], **pickled)]
    for task in keys.TASKS:
        for args in ([], ["x"] * 4, [1, -1, 0, 1], [None] * 5, [[], {}, 2**70, "", b"", 1.5]):
            items.append(_message(task, args if 2**70 not in args else [[], {}, 2**62, ""]))
    # When every queue gets them
    for queue in _queues(attacked):
        attacked.lpush(queue, *items)
    wait_for("empty queues", lambda: not any(attacked.llen(queue) for queue in _queues(attacked)))
    # Then they are refused by name
    _logged(cluster, "Received unregistered task of type 'os.system'")
    _logged(cluster, "Refusing to deserialize")
    _logged(cluster, "is not a whole number from 0")


def test_a_queue_of_another_type_is_made_again(
    cluster: LocalCluster, attacked: redis.Redis
) -> None:
    for queue in _queues(attacked):
        attacked.set(queue, "nonsense")
    _logged(cluster, "is a string, not a list: deleted")


# -- messages of running steps ---------------------------------------------------------------------


def test_forged_and_replayed_messages_change_no_token(
    cluster: LocalCluster, attacked: redis.Redis, tiny: Tiny, chance: random.Random
) -> None:
    """Copies of true messages, and messages of other epochs, steps, sizes, dtypes and clusters."""
    plan = _plan(attacked)
    rows = Step(plan.epoch, 3, (Row(0, 0, (5,), 1, LogitsRequest()),), 2).encode()
    other_rows = Step(plan.epoch + 7, 9, (Row(99, 0, (5,), 1),), 2).encode()
    wrong = [
        [plan.epoch + 1, 0, 0, 1, rows],
        [plan.epoch, 3, 0, 1, rows, None, "another"],
        [plan.epoch, 5, 0, 1, other_rows],
        [plan.epoch, 10**6, 0, 1, b"no step"],
        [plan.epoch, 10**6, 3, 1, rows],
        [plan.epoch, 10**6, 0, 99, rows],
    ]
    part = Part(compute_s=0.1).encode()
    ends = [[[part] * count, plan.epoch, step, 0, 0.1] for count in (0, 1, 3) for step in range(40)]
    ends.append([[part] * 3, plan.epoch, 0, 0, 0.1, "another"])
    generations = [
        cluster.submit_prompt(prompt, max_tokens=len(tokens))
        for prompt, tokens in zip(tiny.prompts, tiny.tokens, strict=True)
        for _ in range(3)
    ]
    # When they come while requests run, with copies of what is in the queues
    while not all(generation.ready() for generation in generations):
        for queue in _queues(attacked):
            # A few copies at a time: of a whole queue they would double it faster than it is read.
            if attacked.llen(queue) > MAX_QUEUED:
                continue
            taken = cast("list[bytes]", attacked.lrange(queue, 0, 1))
            if queue == keys.queue_key(keys.ORCHESTRATOR_QUEUE):
                forged = [_message(keys.FINISH_STEP_TASK, chance.choice(ends))]
            else:
                forged = [_message(keys.RUN_SPAN_TASK, chance.choice(wrong))]
            attacked.lpush(queue, *forged, *taken)
    # Then every answer is right
    answers = [generation.get(timeout=120).token_ids for generation in generations]
    assert answers == [tokens for tokens in tiny.tokens for _ in range(3)]


# -- keys ------------------------------------------------------------------------------------------


NONSENSE: list[Callable[[random.Random], bytes]] = [
    lambda chance: chance.randbytes(200),
    lambda _: b"{}",
    lambda _: b"[" * 5000,
]
TEXT_KEYS = (
    keys.plan_key,
    keys.next_plan_key,
    keys.target_key,
    keys.engine_key,
    keys.epoch_key,
    keys.term_key,
    keys.arrivals_key,
    keys.rebalance_key,
)


def test_nonsense_in_the_keys_of_the_cluster_is_replaced(
    cluster: LocalCluster, attacked: redis.Redis, chance: random.Random
) -> None:
    # Given the plan
    plan, target = _plan(attacked), attacked.get(keys.target_key())
    # When nonsense is written over it, the target, the counters, and a member
    for number, key in enumerate(TEXT_KEYS):
        attacked.set(key(), NONSENSE[number % 3](chance))
    for number, nonsense in enumerate(NONSENSE):
        attacked.set(keys.member_key(f"forged{number}"), nonsense(chance))
        attacked.zadd(keys.members_key(), {f"forged{number}": 2e9, b"\xff\xfe": 2e9})
        attacked.xadd(keys.events_key(), {"x": nonsense(chance)})

    # Then the leader writes plan and target again
    def is_back() -> bool:
        try:
            return _plan(attacked).stages == plan.stages
        except SkynetError:
            return False

    wait_for("the plan", is_back)
    wait_for("the target", lambda: attacked.get(keys.target_key()) == target)
    attacked.delete(*(keys.member_key(f"forged{number}") for number in range(len(NONSENSE))))


def test_keys_of_another_type_are_made_again(cluster: LocalCluster, attacked: redis.Redis) -> None:
    for key in (keys.members_key(), keys.events_key(), keys.open_requests_key()):
        attacked.set(key, "nonsense")
    for key in TEXT_KEYS:
        attacked.delete(key())
        attacked.rpush(key(), "nonsense")
    wait_for("members", lambda: attacked.type(keys.members_key()) == b"zset")
    wait_for("the plan", lambda: attacked.type(keys.plan_key()) == b"string")
    wait_for("the target", lambda: attacked.type(keys.target_key()) == b"string")
    _logged(cluster, f"{keys.members_key()} is a string, not a zset: deleted")


def test_nonsense_in_requests_ends_these_requests_only(
    cluster: LocalCluster, attacked: redis.Redis, tiny: Tiny, chance: random.Random
) -> None:
    # Given records of other types, with missing fields, and with nonsense in each field
    request = cluster.submit_prompt(tiny.prompts[0], max_tokens=2)
    request.get(timeout=60)
    fields = cast("dict[bytes, bytes]", attacked.hgetall(keys.request_key(request.id)))
    fields |= {b"state": b"waiting", b"emitted": b"0"}
    fields.pop(b"end", None)
    attacked.set(keys.request_key("bad-type"), "nonsense")
    attacked.hset(keys.request_key("bad-empty"), "x", "y")
    names = ["bad-type", "bad-empty"]
    for index, name in enumerate((b"prompt", b"options", b"created", b"emitted", b"deadline")):
        for nonsense in (b"{}", b"nan", chance.randbytes(40)):
            names.append(f"bad-{index}-{len(names)}")
            mapping = cast(Any, {**fields, name: nonsense})
            attacked.hset(keys.request_key(names[-1]), mapping=mapping)
    running = cluster.submit_prompt(tiny.prompts[0], max_tokens=300)
    # When they are among the open requests, and a running one's stream is overwritten
    attacked.zadd(keys.open_requests_key(), dict.fromkeys(names, 1000000000.0) | {b"\xff": 1e9})
    next(running.tokens(timeout=60))
    attacked.set(keys.tokens_key(running.id), "nonsense")
    # Then all end, each with an error of its own, or are deleted
    with pytest.raises(SkynetError):
        running.get(timeout=60)
    wait_for("no open requests", lambda: not attacked.zcard(keys.open_requests_key()))
