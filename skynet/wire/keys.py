"""Every Redis key, queue name and task name.

All keys, queues and channels begin with SKYNET_PREFIX, `skynet:` by default, so that clusters and
other applications share a Redis; the names that people type have no prefix (`-Q stage0.shard1`).
One process has one prefix. Lifetimes are settings:

    key, after the prefix                 type     lifetime        value
    plan                                  string   kept            plan in force, JSON
    target                                string   kept            target asked for, JSON
    revision                              integer  kept            revision of the last target
    plan:next                             string   kept            plan in preparation, JSON
    epoch                                 integer  kept            epoch of the last plan
    rebalance                             string   a minute        request to rebalance
    leader                                string   the lease       TERM:ID of the leader
    term                                  integer  kept            term of the last leader
    events                                stream   newest 500      joins, losses, plans
    model:<digest>:manifest               string   kept            manifest, written last
    model:<digest>:file:<name>            string   kept            config, tokenizer, template
    model:<digest>:tile:<tensor>:<i>      string   kept            one tile, msgpack-numpy
    model:<digest>:lock                   string   30 s, renewed   token of the stager
    model:<digest>:bad                    list     an hour         reports of bad tiles
    model:<digest>:lean                   string   10 s, renewed   tiles may be absent: see --lean
    members                               zset     kept            member id -> last renewal
    member:<id>                           string   the lease       live worker, JSON
    engine                                string   seconds         state of the engine, JSON
    metrics                               string   an hour         numbers of the cluster, JSON
    probe                                 string   never set       asks if Redis takes writes
    requests:open                         zset     kept            unfinished ids by arrival
    requests:arrivals                     integer  kept            arrival counter
    request:<id>                          hash     result_expires  record
    request:<id>:tokens                   stream   result_expires  tokens, then the end
    request:<id>:end                      stream   result_expires  the end alone
    step:<epoch>.<step>                   string   step_timeout    step, msgpack
    hidden:<epoch>.<step>.<layer>         string   step_timeout    hidden states, a frame
    chord:<epoch>.<step>                  hash     step_timeout    parts by shard, layers done

    Celery's and kombu's:
    orchestrator, stage<i>.shard<j>       list     kept            queue: task messages
    celery-task-meta-<id>                 string   result_expires  result of a request, JSON
    <id>.reply.celery.pidbox              list     10 s            replies to `celery inspect`
    _kombu.binding.<exchange>             set      kept            queues of an exchange
    _kombu.binding_permanent.<exchange>   set      kept            those that do not expire
    _kombu.binding_deadlines              zset     kept            when the others expire

    channel, after the prefix
    x:<epoch>:<stage>.<shard>             partials of a shard, for its peers
    x:<epoch>:<stage>.<shard>><peer>      partials of a shard for one of them
    celery-task-meta-<id>                 the same result, when it is written
    /<db>.celery.pidbox                   `celery inspect` and `celery control`
    /<db>.celeryev/<event>                events, for Flower
"""

from __future__ import annotations

import re
from typing import NamedTuple

from skynet.errors import ConfigurationError
from skynet.settings import settings

ORCHESTRATOR_QUEUE = "orchestrator"

GENERATE_TASK = "skynet.generate"
CANCEL_TASK = "skynet.cancel"
RUN_SPAN_TASK = "skynet.run_span"
ADVANCE_TASK = "skynet.advance"
FINISH_STEP_TASK = "skynet.finish_step"
FAIL_STEP_TASK = "skynet.fail_step"
TASKS = (
    GENERATE_TASK,
    CANCEL_TASK,
    RUN_SPAN_TASK,
    ADVANCE_TASK,
    FINISH_STEP_TASK,
    FAIL_STEP_TASK,
)

SERIALIZER = "skynet-msgpack"

POP_S = 0.5  # timeout of a worker's pop of its queue, which is then repeated

_ADDRESS = re.compile(r"stage(0|[1-9]\d{0,4})\.shard(0|[1-9]\d{0,4})")


class Address(NamedTuple):
    """The place of a shard worker; as a string, the name of its queue."""

    stage: int
    shard: int

    def __str__(self) -> str:
        return f"stage{self.stage}.shard{self.shard}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`stage0.shard1` -> Address(0, 1).

        Raises:
            ConfigurationError: the text is not an address.
        """
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise ConfigurationError(
                f"{text!r} is not a queue of SkyNet: use -Q stage0.shard1 (any numbers) for a "
                f"shard worker or -Q {ORCHESTRATOR_QUEUE} for the orchestrator"
            )
        return cls(int(match[1]), int(match[2]))


def key(name: str) -> str:
    """The Redis key of this name: under the prefix, like every key."""
    return f"{settings().prefix}{name}"


def queue_key(queue: str) -> str:
    """The Redis key of a queue; kombu makes the same one of its `global_keyprefix`."""
    return key(queue)


def plan_key() -> str:
    return key("plan")


def next_plan_key() -> str:
    return key("plan:next")


def target_key() -> str:
    return key("target")


def revision_key() -> str:
    return key("revision")


def rebalance_key() -> str:
    return key("rebalance")


def epoch_key() -> str:
    return key("epoch")


def term_key() -> str:
    return key("term")


def leader_key() -> str:
    return key("leader")


def events_key() -> str:
    return key("events")


def members_key() -> str:
    return key("members")


def engine_key() -> str:
    return key("engine")


def metrics_key() -> str:
    return key("metrics")


def probe_key() -> str:
    return key("probe")


def open_requests_key() -> str:
    return key("requests:open")


def arrivals_key() -> str:
    return key("requests:arrivals")


def manifest_key(digest: str) -> str:
    return key(f"model:{digest}:manifest")


def file_key(digest: str, name: str) -> str:
    return key(f"model:{digest}:file:{name}")


def tile_key(digest: str, tensor: str, index: int) -> str:
    return key(f"model:{digest}:tile:{tensor}:{index}")


def model_keys(digest: str) -> str:
    """A pattern that matches all keys of a model; digest `*`: of all models."""
    return key(f"model:{digest}:*")


def digest_of(model_key: bytes) -> str:
    """The digest in a key of a model."""
    return _model_words(model_key)[0]


def is_tile_key(model_key: bytes) -> bool:
    return _model_words(model_key)[1] == "tile"


def _model_words(model_key: bytes) -> list[str]:
    """Digest, kind and the rest of a key of a model."""
    return model_key.decode().removeprefix(key("model:")).split(":", 2)


def staging_lock_key(digest: str) -> str:
    return key(f"model:{digest}:lock")


def bad_tiles_key(digest: str) -> str:
    return key(f"model:{digest}:bad")


def lean_key(digest: str) -> str:
    return key(f"model:{digest}:lean")


def member_key(member_id: str) -> str:
    return key(f"member:{member_id}")


def request_key(request_id: str) -> str:
    return key(f"request:{request_id}")


def tokens_key(request_id: str) -> str:
    return key(f"request:{request_id}:tokens")


def end_key(request_id: str) -> str:
    return key(f"request:{request_id}:end")


def step_key(epoch: int, step: int) -> str:
    return key(f"step:{epoch}.{step}")


def hidden_key(group_id: str) -> str:
    """The hidden states before the first layer of this chord."""
    return key(f"hidden:{group_id}")


def chord_id(epoch: int, step: int, layer: int) -> str:
    """The group id of the chord whose span starts at `layer`."""
    return f"{epoch}.{step}.{layer}"


def chord_key(epoch: int, step: int) -> str:
    """The parts of the step's current chord."""
    return key(f"chord:{epoch}.{step}")


def exchange_channel(epoch: int, stage: int, sender: int, receiver: int | None = None) -> bytes:
    """The channel of a shard's partials: for all its peers, or for one of them."""
    to = "" if receiver is None else f">{receiver}"
    return key(f"x:{epoch}:{stage}.{sender}{to}").encode()
