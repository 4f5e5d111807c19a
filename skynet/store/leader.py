"""Leader election among orchestrators: a lease with a fencing token.

The token is the leader key's value, "TERM:ID". Every script by which an orchestrator writes
compares it first, so an orchestrator that lost its lease cannot write, however late it wakes
(Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, cast

import redis

from skynet.errors import Fenced
from skynet.wire import keys

# Start of every fenced script: KEYS[1] is the leader key, ARGV[1] the fence; "" is not checked
# (tools and tests).
GUARD = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED another orchestrator leads')
end
"""

# A counter that is no number, or beyond the integers of Lua, counts as 0.
COUNT = """
local function count(text)
  local number = tonumber(text or '0') or 0
  if number >= 0 and number < 2^53 and number == math.floor(number) then return number end
  return 0
end
"""

# KEYS: leader, term, epoch. ARGV: id, lease in ms, the last term and epoch that the caller knows.
# Counters never go back, even if Redis lost its data. Replies the fence, or "" if another leads.
ACQUIRE = (
    COUNT
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return '' end
local term = math.max(count(redis.call('GET', KEYS[2])), tonumber(ARGV[3])) + 1
term = string.format('%.0f', term)
redis.call('SET', KEYS[2], term)
if count(redis.call('GET', KEYS[3])) < tonumber(ARGV[4]) then
  redis.call('SET', KEYS[3], ARGV[4])
end
local fence = term .. ':' .. ARGV[1]
redis.call('SET', KEYS[1], fence, 'PX', ARGV[2])
return fence
"""
)

# KEYS: leader, term. ARGV: fence, lease in ms, term. Replies 1: held, 0: lost, -1: Redis lost its
# data. An expired lease is renewed if no other orchestrator held it since.
RENEW = (
    COUNT
    + """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
local term = redis.call('GET', KEYS[2])
if not term or count(term) < tonumber(ARGV[3]) then return -1 end
if not holder and term == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
)

# KEYS: leader. ARGV: fence.
RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class Held(Enum):
    """The outcome of a renewal."""

    YES = 1
    LOST = 0
    WIPED = -1  # Redis restarted without its data


@contextmanager
def fenced() -> Iterator[None]:
    """Turn a fenced script's refusal into Fenced."""
    try:
        yield
    except redis.ResponseError as error:
        if str(error).startswith("FENCED"):
            raise Fenced("another orchestrator leads: this one must not write") from None
        raise


class Leadership:
    """One orchestrator's claim to lead. Not thread-safe, except `fence`."""

    def __init__(self, client: redis.Redis, member: str, lease_s: float) -> None:
        self.client = client
        self.member = member
        self.lease_ms = int(lease_s * 1000)
        self.fence = ""  # "" while it does not lead
        self._term = 0
        self._acquire = client.register_script(ACQUIRE)
        self._renew = client.register_script(RENEW)
        self._resign = client.register_script(RESIGN)

    @property
    def leads(self) -> bool:
        return bool(self.fence)

    def acquire(self, epoch: int = 0) -> bool:
        """Try to become the leader. `epoch`: the last one this process knows."""
        redis_keys = [keys.leader_key(), keys.term_key(), keys.epoch_key()]
        arguments: list[Any] = [self.member, self.lease_ms, self._term, epoch]
        fence = cast(bytes, self._acquire(keys=redis_keys, args=arguments)).decode()
        if fence:
            self._term = int(fence.partition(":")[0])
            self.fence = fence
        return bool(fence)

    def renew(self) -> Held:
        """Renew the lease."""
        redis_keys = [keys.leader_key(), keys.term_key()]
        arguments: list[Any] = [self.fence, self.lease_ms, self._term]
        return Held(int(cast(int, self._renew(keys=redis_keys, args=arguments))))

    def depose(self, holder: str) -> None:
        """Delete the lease of a dead leader. Safe even if it lives: it is fenced then."""
        self._resign(keys=[keys.leader_key()], args=[holder])

    def holder(self) -> str:
        """The leader's fence, or ""."""
        fence = cast("bytes | None", self.client.get(keys.leader_key()))
        return fence.decode(errors="replace") if fence else ""

    def lose(self, fence: str | None = None) -> None:
        """The lease was lost; ignored if `fence` is not the current one."""
        if fence is None or fence == self.fence:
            self.fence = ""

    def resign(self) -> None:
        """Release the lease at once."""
        fence, self.fence = self.fence, ""
        if fence:
            self._resign(keys=[keys.leader_key()], args=[fence])


def leader_of(client: redis.Redis) -> str:
    """The id of the leading orchestrator, or ""."""
    holder = cast("bytes | None", client.get(keys.leader_key()))
    return holder.decode(errors="replace").partition(":")[2] if holder else ""
