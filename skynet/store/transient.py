"""Writes that are worth one step only: neither in Redis's append-only file nor on its replicas.

Messages of steps, hidden states and parts of chords are useless once their step has ended. After a
restart of Redis or a failover all steps run again under a new epoch, so nothing misses them there.

Pops of queues are propagated, because scripts cannot block. Where the message never was they take
nothing, or from the orchestrator's queue the message of a waiting request, whose record a sweep
accepts (skynet/orchestrator/intake.py).
"""

from __future__ import annotations

import redis

# Start of a script whose writes are transient: what follows is not propagated. Some managed servers
# forbid it; then the script writes as any other does.
TRANSIENT = "local transient = pcall(redis.set_repl, redis.REPL_NONE)\n"
PROPAGATED = (
    "an append-only file and replicas without the messages of steps: Redis does not let scripts "
    "call redis.set_repl"
)


def keeps_transient(client: redis.Redis) -> bool:
    """Whether this Redis keeps transient writes out of its append-only file and its replicas."""
    return bool(client.eval(f"{TRANSIENT} return transient and 1 or 0", 0))
