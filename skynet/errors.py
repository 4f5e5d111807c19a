"""Every error that SkyNet raises. The message names the thing, its value and what to do.

The message is the only argument, so that Celery can store an error in a result backend and raise it
in the client as the same class.
"""


class SkynetError(Exception):
    """Base class of all errors that SkyNet raises."""


class ConfigurationError(SkynetError):
    """A setting or an environment variable has an invalid value."""


class ClusterUnreachable(SkynetError):
    """Redis does not answer, or takes no writes: it is a replica, or full, or loading its data.

    The message names its URL without the password, and what to do.
    """


class CommandRefused(SkynetError):
    """Redis refuses a command to SkyNet's user; the message names command, key and user."""


class NoModel(SkynetError):
    """No model has been split onto this cluster, or its weights are no longer in Redis."""


class IncompatibleVersion(SkynetError):
    """A record in Redis was written by a version of SkyNet that this one does not understand."""


class BadRequest(SkynetError, ValueError):
    """An invalid prompt, option or argument; refused at once."""


class QueueFull(SkynetError):
    """The limit of waiting requests is reached; try again later."""


class CheckpointError(SkynetError):
    """A model directory, hub id or GGUF file is missing, truncated or unreadable."""


class UnsupportedModel(SkynetError):
    """A model type, or a feature of one, that SkyNet does not support."""


class PlanError(SkynetError, ValueError):
    """The model cannot be cut into these stages and shards."""


class WireError(SkynetError, ValueError):
    """A malformed message: wrong format, dtype, size or shape."""


class LinkRefused(SkynetError):
    """The other end of a direct link is not the shard that it should be."""


class TileMissing(SkynetError):
    """A tile of a staged weight is no longer in Redis."""


class TileCorrupted(SkynetError):
    """A tile of a staged weight does not match its checksum."""


class StepFailed(SkynetError):
    """A step failed; the message names the shard and the cause."""


class ShardFailed(StepFailed):
    """A shard raised an error while it computed its part."""


class ShardUnready(StepFailed):
    """A shard lacks the weights, keys or values of a step: it was started, stopped or moved."""


class NotFinite(StepFailed):
    """NaN or infinity among a shard's numbers; names the shard, the layer and the tensor.

    rows: of the step, those with such numbers; empty: any.
    """

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class PeerLost(StepFailed):
    """A peer's partial did not arrive by the deadline, or the peer failed."""


class ShardLost(StepFailed):
    """A shard worker stopped renewing its lease, or missed a step's deadline."""


class Fenced(SkynetError):
    """This orchestrator is no longer the leader and must not write."""


class RequestLost(SkynetError):
    """A request is not in Redis: it expired, never existed, or Redis lost its data."""


class RequestTimeout(SkynetError, TimeoutError):
    """A request passed its deadline."""


class RequestCancelled(SkynetError):
    """A request was cancelled before its end."""
