"""SkyNet: transformers too big for one machine, on several, with Celery and Redis.

    from skynet import submit_prompt
    submit_prompt("What is the capital of France?", max_tokens=20).get(timeout=60).text

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skynet.client.client import Client, submit_prompt, submit_prompts
    from skynet.client.generation import Generation
    from skynet.errors import SkynetError
    from skynet.request.completion import Completion
    from skynet.staging.split import skysplit

__all__ = [
    "Client",
    "Completion",
    "Generation",
    "SkynetError",
    "skysplit",
    "submit_prompt",
    "submit_prompts",
]
__version__ = "0.1.0"

_HOMES = {
    "Client": "skynet.client.client",
    "Completion": "skynet.request.completion",
    "Generation": "skynet.client.generation",
    "SkynetError": "skynet.errors",
    "skysplit": "skynet.staging.split",
    "submit_prompt": "skynet.client.client",
    "submit_prompts": "skynet.client.client",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'skynet' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
