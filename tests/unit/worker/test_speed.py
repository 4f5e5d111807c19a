"""A machine's measured speeds: positive, and without an effect on the threads of the process."""

from __future__ import annotations

import torch

from skynet.worker.layer_speed import measure_layer
from skynet.worker.speed import measure_speeds


def test_speeds_are_measured_and_threads_stay() -> None:
    # Given a number of threads
    before = torch.get_num_threads()
    # When the machine is measured
    speeds = measure_speeds("cpu", threads=1, min_s=0.001)
    layer_s, row_s = measure_layer(speeds, min_s=0.001)
    # Then all are there
    assert min(speeds.one_row, speeds.few_rows, speeds.many_rows) > 0
    assert speeds.threads == 1
    assert layer_s >= 0
    assert row_s >= 0
    assert torch.get_num_threads() == before
