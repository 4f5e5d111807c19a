"""`python -m versioned PROTOCOL ...`: the celery command as another version of SkyNet runs it."""

from __future__ import annotations

import runpy
import sys

from skynet.wire import protocol

if __name__ == "__main__":
    protocol.PROTOCOL = int(sys.argv.pop(1))
    runpy.run_module("celery", run_name="__main__")
