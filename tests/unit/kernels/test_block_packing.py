"""Quantised weights in records: the same bytes as PyTorch's copies of views."""

from __future__ import annotations

import pytest
import torch
from test_quantised_products import GROUPS, LAYOUTS, LIBRARIES, SCALES, blocks_of

from skynet.kernels.library import BLOCK, Library
from skynet.kernels.quantised import IntegerBlocks, PackedBlocks
from skynet.wire.blocks import BlockFormat


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


def records(blocks: torch.Tensor, form: BlockFormat, unit: int) -> torch.Tensor:
    """The records of quantised.c, (blocks of 32 outputs, groups, record), zeros past the last
    output; unit: bytes of an output's codes that stay together.
    """
    padded = torch.zeros(-(-len(blocks) // BLOCK) * BLOCK, *blocks.shape[1:], dtype=torch.uint8)
    padded[: len(blocks)] = blocks
    grouped = padded.unflatten(0, (-1, BLOCK)).transpose(1, 2)  # (blocks, groups, 32, block)
    codes = grouped[..., : form.code_bytes].unflatten(-1, (-1, unit)).transpose(2, 3)
    factors = grouped[..., form.code_bytes :].unflatten(-1, (-1, form.scale_bytes)).transpose(2, 3)
    return torch.cat([factors.flatten(2), codes.flatten(2)], dim=-1)


@pytest.mark.parametrize("kind", [PackedBlocks, IntegerBlocks])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", GROUPS)
def test_packed_weights_have_the_bytes_of_records(
    compiled: Library, kind: type[PackedBlocks], layout: str, scale_dtype: str, group: int
) -> None:
    form = BlockFormat(layout, group, scale_dtype)  # type: ignore[arg-type]
    unit = 4 if layout == "q4" or kind is IntegerBlocks else 1
    before = torch.get_num_threads()
    try:
        for outputs, groups, threads in ((1, 1, 1), (64, 3, 2), (83, 5, 3)):
            # Given blocks, of outputs of which the last record is not full too
            blocks = blocks_of(form, outputs, groups)
            torch.set_num_threads(threads)
            # When they are packed, on several threads
            packed = kind(compiled, blocks, form, None)
            # Then each record has its bytes, and the way back loses nothing
            assert torch.equal(packed._packed, records(blocks, form, unit))
            assert torch.equal(packed.unpacked(), blocks)
    finally:
        torch.set_num_threads(before)
