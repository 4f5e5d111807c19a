"""The version of what the processes of one plan send each other.

Raise PROTOCOL with every change to the arguments of tasks, to steps, parts and their keys, frames,
the exchange or plans: a plan never has members of two versions. What outlives a plan is read by any
version: fields of request records, answers and targets are only added, with defaults, and a
manifest has a FORMAT of its own.
"""

from __future__ import annotations

PROTOCOL = 5
UNVERSIONED = 0  # of records from before there was a version
