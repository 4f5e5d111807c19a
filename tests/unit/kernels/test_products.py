"""The compiled kernels, each that this CPU can run, give PyTorch's float32 product."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

from skynet.errors import ConfigurationError
from skynet.kernels import library
from skynet.kernels.library import BLOCK, Library, available, kernels
from skynet.kernels.many_rows import UNPACKED_ROWS
from skynet.kernels.products import PackedWeight
from skynet.kernels.steps import NUMBERS
from skynet.layers.linear import KernelLinear, WideningLinear, make_linear
from skynet.settings import settings

LIBRARIES = available()
THREADS = [1, 2, 5]
EVERY_NUMBER = pytest.mark.parametrize("dtype", NUMBERS, ids=str)
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_this_machine_has_kernels() -> None:
    # Given a CPU of a kind that the build has flags for
    if torch.backends.cpu.get_cpu_capability() not in library.VARIANTS:
        pytest.skip("no variant for this CPU")
    # When / Then the installation has built them
    assert LIBRARIES


@pytest.mark.usefixtures("threads")
@EVERY_NUMBER
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, UNPACKED_ROWS - 1, UNPACKED_ROWS, 65])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 7), (32, 64), (83, 48), (320, 576)])
def test_products_are_those_of_float32(
    compiled: Library, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    # Given a weight, packed, and activations
    torch.manual_seed(rows + outputs)
    weight = torch.randn(outputs, inputs).to(dtype)
    bias, x = torch.randn(outputs), torch.randn(rows, inputs)
    # When they are multiplied
    result = PackedWeight(compiled, weight, bias)(x)
    # Then the result is that of the float32 weight, computed in float64, to float32's rounding
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    bound = F.linear(x.abs().double(), weight.abs().double(), bias.abs().double())
    assert ((result - expected).abs() <= 1e-6 * bound).all()


def blocks_of(weight: torch.Tensor) -> torch.Tensor:
    """The layout of products.c by PyTorch's operators: (blocks, in, 32)."""
    rows = F.pad(weight, (0, 0, 0, -len(weight) % BLOCK))
    blocks = rows.unflatten(0, (-1, BLOCK)).transpose(1, 2)
    if weight.dtype == torch.bfloat16:
        blocks = blocks.unflatten(2, (2, BLOCK // 2)).transpose(2, 3).flatten(2)
    return blocks.contiguous()


@pytest.mark.usefixtures("threads")
@EVERY_NUMBER
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 1), (31, 7), (32, 4), (64, 33), (83, 48), (320, 98)]
)
def test_packing_is_that_of_pytorch_and_is_undone(
    compiled: Library, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    # Given a weight with numbers of any bits, NaN and infinity among them, not contiguous
    bits = torch.randint(-(2**15), 2**15, (inputs, outputs), dtype=torch.int64)
    weight = (bits * (65537 if dtype == torch.float32 else 1)).to(BITS[dtype]).view(dtype).t()
    # When it is packed
    packed = PackedWeight(compiled, weight, None)
    # Then every bit is where PyTorch's operators put it, and where it was before after unpacking
    assert torch.equal(packed.blocks.view(BITS[dtype]), blocks_of(weight).view(BITS[dtype]))
    assert torch.equal(packed.dense().view(BITS[dtype]), weight.contiguous().view(BITS[dtype]))


@EVERY_NUMBER
def test_a_row_gives_the_same_bits_beside_others_and_in_any_number_of_threads(
    compiled: Library, dtype: torch.dtype
) -> None:
    # Given a weight and rows that are multiplied alone on one thread
    torch.manual_seed(0)
    packed = PackedWeight(compiled, torch.randn(640, 96).to(dtype), None)
    x, before = torch.randn(7, 96), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([packed(row[None]) for row in x])
        # When they are multiplied together on several
        torch.set_num_threads(3)
        together = packed(x)
    finally:
        torch.set_num_threads(before)
    # Then the bits are equal
    assert torch.equal(alone, together)


def test_many_callers_at_once_get_their_own_results(compiled: Library) -> None:
    # Given several Python threads, each with a product of its own on several threads
    torch.manual_seed(0)
    weights = [torch.randn(256, 64 + index).bfloat16() for index in range(4)]
    wrong: list[int] = []

    def multiply(index: int) -> None:
        torch.set_num_threads(3)
        packed, x = PackedWeight(compiled, weights[index], None), torch.randn(2, 64 + index)
        expected = packed(x)
        wrong.extend(1 for _ in range(500) if not torch.equal(packed(x), expected))

    # When they multiply at the same time
    threads = [threading.Thread(target=multiply, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # Then no result is another's
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_a_forked_process_has_threads_of_its_own() -> None:
    # Given a process that has used the kernels on several threads, and forks
    if not LIBRARIES:
        pytest.skip("none built")
    code = (
        "import os, signal, torch\n"
        "from skynet.layers.linear import make_linear\n"
        "torch.set_num_threads(3)\n"
        "product = make_linear(torch.ones(640, 8).bfloat16(), None, torch.float32)\n"
        "x = torch.ones(1, 8)\n"
        "for _ in range(20):\n"  # a thread may wake up just then
        "    product(x)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(20)\n"
        "        os._exit(0 if (product(x) == 8).all() else 1)\n"
        "    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    if code:\n"
        "        raise SystemExit(code)\n"
    )
    # When the child multiplies / Then it answers
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_without_kernels_pytorch_widens_the_weight(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    # Given a machine without kernels
    monkeypatch.setattr("skynet.layers.linear.kernels", lambda: None)
    weight, bias = torch.randn(600, 40).to(dtype), torch.randn(600)
    x = torch.randn(rows, 40)
    # When a product of float32 activations is made
    product = make_linear(weight, bias, torch.float32)
    # Then it is that of the float32 weight
    assert isinstance(product, WideningLinear)
    assert torch.equal(product.dense(), weight)
    torch.testing.assert_close(product(x), F.linear(x, weight.float(), bias))


def test_the_setting_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the setting `torch`
    choose(monkeypatch, "torch")
    # When / Then there are no kernels
    assert kernels() is None
    # Given a variant that this machine lacks / When / Then the error says what it has
    choose(monkeypatch, "neon" if "neon" not in LIBRARIES else "avx2")
    with pytest.raises(ConfigurationError, match=r"SKYNET_KERNELS=\w+: this machine has"):
        kernels()
    # Given each variant that it has / When / Then it is used
    for name in LIBRARIES:
        choose(monkeypatch, name)
        assert kernels().variant == name
        for dtype in NUMBERS:
            product = make_linear(torch.zeros(4, 4, dtype=dtype), None, torch.float32)
            assert isinstance(product, KernelLinear)


@pytest.fixture(autouse=True)
def _forget_choice() -> object:
    yield
    kernels.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(os.environ, "SKYNET_KERNELS", name)
    settings.cache_clear()
    kernels.cache_clear()
