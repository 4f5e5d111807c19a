"""Products of many rows: both ways give the float32 product, and the faster one is kept."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from skynet.kernels import many_rows, measure
from skynet.kernels.library import BLOCK, Library, available
from skynet.kernels.many_rows import KERNEL, TORCH, UNPACKED_ROWS, Choice, by_kernel, by_torch
from skynet.kernels.products import PackedWeight
from skynet.layers.linear import make_linear

LIBRARIES = available()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="none built")


@pytest.fixture(params=LIBRARIES)
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


@pytest.fixture(autouse=True)
def _default_choice() -> Iterator[None]:
    many_rows.keep(Choice())
    yield
    many_rows.keep(Choice())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 12, 13, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (17, 300), (64, 64), (83, 257), (31, 0)])
def test_the_kernel_and_pytorch_give_the_float32_product(
    compiled: Library, rows: int, outputs: int, inputs: int, threads: int
) -> None:
    # Given a weight of blocks of 32 outputs, which is unpacked by a function
    torch.manual_seed(rows + outputs)
    weight, bias, x = Unpacked(outputs, inputs), torch.randn(outputs), torch.randn(rows, inputs)
    padded = F.pad(bias, (0, -outputs % BLOCK))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # When it is multiplied in both ways
        results = [
            by_kernel(compiled, x, padded, outputs, weight.unpack),
            by_torch(x, padded, outputs, weight.unpack),
        ]
    finally:
        torch.set_num_threads(before)
    # Then the results are those of float64, to float32's rounding
    dense = weight.dense.double()
    expected = F.linear(x.double(), dense, bias.double())
    bound = F.linear(x.abs().double(), dense.abs(), bias.abs().double())
    for result in results:
        assert result.shape == (rows, outputs)
        assert result.is_contiguous()
        assert ((result - expected).abs() <= 2e-6 * bound).all()


def test_a_row_has_the_same_bits_alone_and_among_many() -> None:
    # Given a product of bfloat16 weights, as wide as some tiles, and many rows
    torch.manual_seed(0)
    product = make_linear(torch.randn(1000, 300).bfloat16(), torch.randn(1000), torch.float32)
    x = torch.randn(100, 300)
    # When rows are multiplied together and alone
    together, alone = product(x), torch.cat([product(row[None]) for row in x])
    # Then the bits are equal: a replay as a prompt gives what decoding gave
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({KERNEL: 1.0, TORCH: 0.9, "few": 5.0}, Choice(KERNEL, UNPACKED_ROWS)),
        ({KERNEL: 1.0, TORCH: 0.7, "few": 5.0}, Choice(TORCH, UNPACKED_ROWS)),
        ({KERNEL: 1.0, TORCH: 2.0, "few": 0.5}, Choice(KERNEL, 4 * UNPACKED_ROWS)),
    ],
)
def test_the_faster_way_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], chosen: Choice
) -> None:
    # Given times of the ways and of the few-row kernel, as a clock shows them
    now = [0.0]

    def spend(name: str) -> None:
        now[0] += seconds[name]

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(many_rows, "by_kernel", lambda *_: spend(KERNEL))
    monkeypatch.setattr(many_rows, "by_torch", lambda *_: spend(TORCH))

    def packed(*args: object) -> PackedWeight:
        weight = PackedWeight(*args)
        weight._kernels = SimpleNamespace(product=lambda *_: spend("few"))
        return weight

    monkeypatch.setattr(measure, "PackedWeight", packed)
    # When a worker measures / Then the faster way is kept, if it is faster by a margin
    assert measure.choose_many_rows(1) == chosen
    assert many_rows.choice() == chosen


def test_the_choice_is_logged_and_threads_stay(caplog: pytest.LogCaptureFixture) -> None:
    # Given the log of a worker
    before = torch.get_num_threads()
    with caplog.at_level(logging.INFO, measure.__name__):
        # When it measures
        chosen = measure.choose_many_rows(1)
    # Then one line has the choice, which products use from then on
    assert [record.message for record in caplog.records if chosen.way in record.message]
    assert chosen.rows in measure.ROWS
    assert torch.get_num_threads() == before


def test_without_kernels_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given no kernels / When / Then nothing is measured
    monkeypatch.setattr(measure, "kernels", lambda: None)
    assert measure.choose_many_rows(1) == Choice()
    # And a product of tiles is PyTorch's
    monkeypatch.setattr(many_rows, "kernels", lambda: None)
    weight, x = Unpacked(40, 8), torch.randn(64, 8)
    result = many_rows.by_tiles(x, torch.zeros(64), 40, weight.unpack)
    torch.testing.assert_close(result, x @ weight.dense.T)


class Unpacked:
    """A float32 weight that is written out as kernels write theirs."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.dense = torch.randn(outputs, inputs)
        padded = F.pad(self.dense, (0, 0, 0, -outputs % BLOCK))
        self.blocks = padded.unflatten(0, (-1, BLOCK)).transpose(1, 2)  # (blocks, in, 32)

    def unpack(self, address: int, first: int, blocks: int) -> None:
        tile = self.blocks[first : first + blocks].transpose(0, 1).contiguous()
        memory = (ctypes.c_float * tile.numel()).from_address(address)
        if tile.numel():
            ctypes.memmove(memory, tile.data_ptr(), tile.nbytes)
