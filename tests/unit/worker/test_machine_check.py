"""Settings that this machine cannot work with end a worker before it joins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from skynet.errors import ConfigurationError
from skynet.kernels.library import available, kernels
from skynet.settings import Settings, settings
from skynet.worker.machine_check import MAX_THREADS_PER_CORE, check_machine


@pytest.mark.parametrize(
    "device", ["cuda:63", "cuda:-1", "meta", "gpu", "tpu", "cpu:x", "", "xla", "vulkan"]
)
def test_a_device_that_cannot_compute_is_named_with_those_that_can(device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^SKYNET_DEVICE={device}: .*: cpu"):
        check_machine(Settings(device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="SKYNET_DEVICE=cuda: "):
        check_machine(Settings(device="cuda"))


def test_devices_that_compute_are_accepted() -> None:
    check_machine(Settings(device="cpu"))
    check_machine(Settings(device="cpu:0"))


def test_threads_are_limited_by_the_cores() -> None:
    most = MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
    check_machine(Settings(threads=most))
    with pytest.raises(ConfigurationError, match=f"^SKYNET_THREADS={most + 1}: this machine has"):
        check_machine(Settings(threads=most + 1))


def test_a_worker_on_the_cpu_starts_without_torch() -> None:
    code = (
        "import sys; from skynet.settings import Settings; "
        "from skynet.worker.machine_check import check_machine; "
        "check_machine(Settings()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_kernels_that_the_cpu_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a setting that asks for another CPU's kernels
    absent = next(name for name in ("neon", "avx512", "avx2") if name not in available())
    monkeypatch.setenv("SKYNET_KERNELS", absent)
    settings.cache_clear()
    kernels.cache_clear()
    # When / Then
    try:
        with pytest.raises(ConfigurationError, match=f"^SKYNET_KERNELS={absent}: this machine has"):
            check_machine(settings())
    finally:
        settings.cache_clear()
        kernels.cache_clear()
