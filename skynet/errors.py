"""Every error SkyNet raises. Each takes one message: the thing, its value, and what to do.

One argument only, so that Celery can send any of them through a result backend and raise it
again, as the same class, in the client.
"""


class SkynetError(Exception):
    """Base of everything SkyNet raises on purpose."""


class ConfigurationError(SkynetError):
    """A setting or an environment variable has a value that cannot work."""


class ClusterUnreachable(SkynetError):
    """Redis did not answer; the message names its URL without the password."""


class NoModel(SkynetError):
    """Redis answers, but nobody has split a model onto this cluster."""


class BadRequest(SkynetError, ValueError):
    """A prompt or an option that can never be answered; refused at submit."""


class QueueFull(SkynetError):
    """More requests are waiting than the cluster's limit; try again later."""


class CheckpointError(SkynetError):
    """A model directory, hub id or GGUF file that is missing, truncated or unreadable."""


class UnsupportedModel(SkynetError):
    """A model type, or a feature of one, that SkyNet does not compute."""


class PlanError(SkynetError, ValueError):
    """Stages and shards that the model cannot be cut into."""


class WireError(SkynetError, ValueError):
    """Bytes that are not a message of ours: wrong dtype, size or shape."""


class TileMissing(SkynetError):
    """A staged weight that is not in Redis any more."""


class TileCorrupted(SkynetError):
    """A staged weight whose checksum does not match."""


class StepFailed(SkynetError):
    """A step could not be computed; says which shard and why."""


class ShardFailed(StepFailed):
    """A shard raised while it computed its part."""


class ShardUnready(StepFailed):
    """A shard has not what a step needs: it was started, stopped or moved meanwhile."""


class PeerLost(StepFailed):
    """A shard waited for a peer's partial until the deadline."""


class ShardLost(StepFailed):
    """A shard's worker stopped renewing its lease, or let its step deadline pass."""


class Fenced(SkynetError):
    """This orchestrator is no longer the leader; it may write nothing."""


class RequestLost(SkynetError):
    """A request that is not in Redis: it has expired, never was, or Redis lost its data."""


class RequestTimeout(SkynetError, TimeoutError):
    """A request passed its own deadline."""


class RequestCancelled(SkynetError):
    """Somebody cancelled the request before it was finished."""
