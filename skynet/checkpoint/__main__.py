"""`python -m skynet.checkpoint NAME`: open (and convert) a checkpoint, print its path."""

from __future__ import annotations

import sys

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.errors import SkynetError
from skynet.settings import settings

try:
    print(open_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "demo", settings().cache_dir).path)
except SkynetError as error:
    sys.exit(str(error))
