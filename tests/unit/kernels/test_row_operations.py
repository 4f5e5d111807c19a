"""RMS norms and activations of many rows: the kernels give PyTorch's results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from skynet.kernels import row_operations
from skynet.kernels.library import Library, available
from skynet.kernels.row_operations import VECTORS, activate, rms_norm
from skynet.layers.activation import ACTIVATIONS

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="none built")


@pytest.fixture(params=LIBRARIES, autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.setattr(row_operations, "kernels", lambda: LIBRARIES[request.param])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield LIBRARIES[request.param]
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("size", [1, 16, 100])
def test_rms_norms_are_pytorchs(rows: int, size: int) -> None:
    # Given rows, and heads that are a part of wider rows
    torch.manual_seed(rows + size)
    x, weight = torch.randn(rows, size), torch.randn(size)
    heads, weights = torch.randn(rows, 5, size)[:, 1:4], torch.randn(3, size)
    # When / Then each vector is normed with its weights
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), F.rms_norm(x, (size,), weight, 1e-6))
    expected = F.rms_norm(heads, (size,), None, 1e-5) * weights
    torch.testing.assert_close(rms_norm(heads, weights, 1e-5), expected)


@pytest.mark.parametrize("name", sorted(VECTORS))
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 48), (300, 83)])
def test_activations_are_pytorchs(name: str, rows: int, columns: int) -> None:
    # Given gates and what they multiply, far from zero too
    torch.manual_seed(rows)
    gate, up = 20 * torch.randn(rows, columns), torch.randn(rows, columns)
    # When / Then
    expected = ACTIVATIONS[name](gate)
    torch.testing.assert_close(activate(name, gate, False), expected)
    both = torch.cat([gate, up], dim=1)
    torch.testing.assert_close(activate(name, both, True), expected * up)


def test_others_are_left_to_pytorch() -> None:
    # Given other dtypes, orders, shapes and names / When / Then nothing is computed
    x, weight = torch.randn(4, 6), torch.randn(6)
    assert rms_norm(x.bfloat16(), weight, 1e-6) is None
    assert rms_norm(torch.randn(6, 4).T, weight, 1e-6) is None
    assert rms_norm(x[None], weight, 1e-6) is None
    assert activate("silu", x[:, ::2], True) is None
    assert activate("silu", x.bfloat16(), True) is None
    assert activate("relu", x, False) is None
