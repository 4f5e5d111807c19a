"""`skynet check`: SkyNet's layers compared with Transformers', one at a time.

Needs no Redis and no workers. Both sides get the reference's input to each layer, so that an error
is reported in the layer where it arises. Each side has one layer at a time in memory.
"""

from skynet.check.check import check_model
from skynet.check.report import Report

__all__ = ["Report", "check_model"]
