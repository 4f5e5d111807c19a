"""A whole cluster on this machine, with an embedded server."""

from skynet.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
