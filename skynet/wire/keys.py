"""Every Redis key, queue name and task name.

The keys, beside queues and Celery's result keys; lifetimes are settings, an inbox's is four times
SKYNET_EXCHANGE_TIMEOUT_S:

    key                                         type     lifetime        value
    skynet:plan                                 string   kept            plan in force, JSON
    skynet:target                               string   kept            target asked for, JSON
    skynet:revision                             integer  kept            revision of the last target
    skynet:plan:next                            string   kept            plan in preparation, JSON
    skynet:epoch                                integer  kept            epoch of the last plan
    skynet:rebalance                            string   a minute        request to rebalance
    skynet:leader                               string   the lease       TERM:ID of the leader
    skynet:term                                 integer  kept            term of the last leader
    skynet:events                               stream   newest 500      joins, losses, plans
    skynet:model:<digest>:manifest              string   kept            manifest, written last
    skynet:model:<digest>:file:<name>           string   kept            config, tokenizer, template
    skynet:model:<digest>:tile:<tensor>:<i>     string   kept            one tile, msgpack-numpy
    skynet:model:<digest>:lock                  string   30 s, renewed   token of the stager
    skynet:model:<digest>:bad                   list     an hour         reports of bad tiles
    skynet:members                              zset     kept            member id -> last renewal
    skynet:member:<id>                          string   the lease       live worker, JSON
    skynet:engine                               string   seconds         state of the engine, JSON
    skynet:probe                                string   never set       asks if Redis takes writes
    skynet:requests:open                        zset     kept            unfinished ids by arrival
    skynet:requests:arrivals                    integer  kept            arrival counter
    skynet:request:<id>                         hash     result_expires  record
    skynet:request:<id>:tokens                  stream   result_expires  tokens, then the end
    skynet:request:<id>:end                     stream   result_expires  the end alone
    skynet:step:<epoch>.<step>                  string   step_timeout    step, msgpack
    skynet:hidden:<epoch>.<step>.<layer>        string   step_timeout    hidden states, a frame
    skynet:chord:<epoch>.<step>.<layer>         hash     step_timeout    parts by shard
    x:<epoch>.<step>.<position>:<stage>.<a>>b   list     4 x exchange    partial of a for b, a frame
"""

from __future__ import annotations

import re
from typing import NamedTuple

from skynet.errors import ConfigurationError

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

PLAN_KEY = "skynet:plan"
NEXT_PLAN_KEY = "skynet:plan:next"
TARGET_KEY = "skynet:target"
REVISION_KEY = "skynet:revision"
REBALANCE_KEY = "skynet:rebalance"
EPOCH_KEY = "skynet:epoch"
TERM_KEY = "skynet:term"
LEADER_KEY = "skynet:leader"
EVENTS_KEY = "skynet:events"
MEMBERS_KEY = "skynet:members"
ENGINE_KEY = "skynet:engine"
OPEN_REQUESTS_KEY = "skynet:requests:open"
ARRIVALS_KEY = "skynet:requests:arrivals"
PROBE_KEY = "skynet:probe"

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


def manifest_key(digest: str) -> str:
    return f"skynet:model:{digest}:manifest"


def file_key(digest: str, name: str) -> str:
    return f"skynet:model:{digest}:file:{name}"


def tile_key(digest: str, tensor: str, index: int) -> str:
    return f"skynet:model:{digest}:tile:{tensor}:{index}"


def model_keys(digest: str) -> str:
    """A pattern that matches all keys of a model; digest `*`: of all models."""
    return f"skynet:model:{digest}:*"


def digest_of(model_key: bytes) -> str:
    """The digest in a key of a model."""
    return model_key.decode().split(":", 3)[2]


def is_tile_key(model_key: bytes) -> bool:
    return model_key.split(b":", 4)[3] == b"tile"


def staging_lock_key(digest: str) -> str:
    return f"skynet:model:{digest}:lock"


def bad_tiles_key(digest: str) -> str:
    return f"skynet:model:{digest}:bad"


def member_key(member_id: str) -> str:
    return f"skynet:member:{member_id}"


def request_key(request_id: str) -> str:
    return f"skynet:request:{request_id}"


def tokens_key(request_id: str) -> str:
    return f"skynet:request:{request_id}:tokens"


def end_key(request_id: str) -> str:
    return f"skynet:request:{request_id}:end"


def step_key(epoch: int, step: int) -> str:
    return f"skynet:step:{epoch}.{step}"


def hidden_key(group_id: str) -> str:
    """The hidden states before the first layer of this chord."""
    return f"skynet:hidden:{group_id}"


def chord_id(epoch: int, step: int, layer: int) -> str:
    """The group id of the chord whose span starts at `layer`."""
    return f"{epoch}.{step}.{layer}"


def chord_key(group_id: str) -> str:
    return f"skynet:chord:{group_id}"


def exchange_key(epoch: int, step: int, position: int, stage: int, sender: int, to: int) -> bytes:
    return b"x:%d.%d.%d:%d.%d>%d" % (epoch, step, position, stage, sender, to)
