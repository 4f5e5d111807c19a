"""What a starting shard worker verifies: this machine can compute as its settings ask.

A worker that cannot would join, take a place and lose every step.
"""

from __future__ import annotations

import os

from skynet.errors import ConfigurationError
from skynet.kernels.library import kernels
from skynet.settings import Settings

MAX_THREADS_PER_CORE = 8


def check_machine(settings: Settings) -> None:
    """Raises ConfigurationError: names the setting, its value and what this machine has."""
    _check_threads(settings.threads)
    if settings.device != "cpu":  # importing torch takes seconds, which a start on the CPU overlaps
        _check_device(settings.device)
    if settings.kernels not in ("auto", "torch"):
        kernels()


def _check_threads(threads: int | None) -> None:
    cores = os.cpu_count() or 1
    if threads is not None and threads > MAX_THREADS_PER_CORE * cores:
        raise ConfigurationError(
            f"SKYNET_THREADS={threads}: this machine has {cores} cores; give at most "
            f"{MAX_THREADS_PER_CORE} threads for each, or unset it for this worker's share"
        )


def _check_device(device: str) -> None:
    import torch

    try:
        computed = float(torch.ones(2, device=device).sum()) == 2
        reason = "it computes 1 + 1 wrongly"
    except Exception as error:  # each backend raises other errors, also AssertionError
        computed, reason = False, str(error).partition("\n")[0] or type(error).__name__
    if not computed:
        raise ConfigurationError(
            f"SKYNET_DEVICE={device}: torch {torch.__version__} cannot compute on it here "
            f"({reason:.200}); devices of this machine: {', '.join(_devices())}"
        )


def _devices() -> list[str]:
    import torch

    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*devices, "mps"] if torch.backends.mps.is_available() else devices
