"""A whole cluster on this machine, with an embedded server."""

from skynet.local.cluster import LocalCluster
from skynet.local.server import local_server

__all__ = ["LocalCluster", "local_server"]
