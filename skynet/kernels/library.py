"""Loads the compiled kernels that this machine's CPU can run."""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path

from skynet.errors import ConfigurationError
from skynet.kernels.build import library_name
from skynet.settings import settings

logger = logging.getLogger(__name__)

BLOCK = 32  # outputs; see products.c and quantised.c
OPERATIONS = (
    *("norm", "product", "quantised", "integer", "attention", "activation", "add"),
    *("router", "experts", "score", "convolution", "delta", "latent"),
    *("mamba", "squares", "divided_norm", "gate", "scale"),
)
TORCH = "torch"  # PyTorch's operators instead of kernels
# PyTorch's name of the CPU's best instruction set -> the variants that it can run, best first.
VARIANTS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",), "DEFAULT": ("neon",)}


class Library:
    """The functions of one compiled variant. They check nothing: see products.py."""

    def __init__(self, variant: str, path: Path) -> None:
        """Raises OSError: the file is missing, or made for another system."""
        self.variant = variant
        library = ctypes.CDLL(str(path))
        self.product, self.unpack = library.skynet_product, library.skynet_unpack
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self.product.argtypes = [*[pointer] * 4, *[number] * 4, ctypes.c_int, ctypes.c_int]
        self.unpack.argtypes = [*[pointer] * 2, *[number] * 3, ctypes.c_int, ctypes.c_int]
        self.pack, self.dense = library.skynet_pack, library.skynet_dense
        for moving in (self.pack, self.dense):
            moving.argtypes = [pointer, pointer, number, number, ctypes.c_int, ctypes.c_int]
            moving.restype = None
        self.product.restype = self.unpack.restype = None
        self.multiply = library.skynet_multiply
        self.multiply.argtypes = [*[pointer] * 4, *[number] * 4, ctypes.c_int]
        self.multiply.restype = None
        self.attend_prompt = library.skynet_attend_prompt
        self.attend_prompt.argtypes = [
            *[pointer] * 4,
            *[number] * 8,
            ctypes.c_float,
            ctypes.c_int,
        ]
        self.attend_prompt.restype = None
        self.rms_norm, self.activate = library.skynet_rms_norm, library.skynet_activate_rows
        self.rms_norm.argtypes = [*[pointer] * 3, *[number] * 4, ctypes.c_float, ctypes.c_int]
        self.activate.argtypes = [*[pointer] * 2, *[number] * 4, ctypes.c_int]
        self.rms_norm.restype = self.activate.restype = None
        self.quantised_product = library.skynet_quantised_product
        self.integer_product = library.skynet_integer_product
        self.quantised_unpack = library.skynet_quantised_unpack
        self.pack_blocks = library.skynet_pack_blocks
        sizes = [number, ctypes.c_int, ctypes.c_int]  # group, whether it is q4, bytes of a scale
        for product in (self.quantised_product, self.integer_product):
            product.argtypes = [*[pointer] * 4, *[number] * 4, *sizes, ctypes.c_int]
            product.restype = ctypes.c_int
        self.pack_blocks.argtypes = [pointer, pointer, number, number, *sizes, *[ctypes.c_int] * 3]
        self.pack_blocks.restype = None
        self.quantised_unpack.argtypes = [pointer, pointer, number, number, number, *sizes]
        self.quantised_unpack.restype = None
        self.run = library.skynet_run
        self.run.argtypes = [pointer, number, pointer, pointer, pointer]
        self.run.restype = None
        self.run_sides = library.skynet_run_sides
        self.run_sides.argtypes = [pointer, number, *[pointer] * 4]
        self.run_sides.restype = number
        # The operations of a decoding step: their addresses; see steps.py.
        self.operations = {
            name: ctypes.cast(library[f"skynet_{name}_step"], pointer).value for name in OPERATIONS
        }


def available() -> dict[str, Library]:
    """Instruction set -> its library, for those that are built and that this CPU has."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    loaded = {}
    for variant in VARIANTS.get(capability, ()):
        try:
            path = Path(__file__).with_name(library_name(variant))
            loaded[variant] = Library(variant, path)
        except OSError as error:
            logger.debug("no kernels for %s: %s", variant, error)
    return loaded


@lru_cache(maxsize=1)
def kernels() -> Library | None:
    """The kernels that `SKYNET_KERNELS` chooses; None: PyTorch's operators.

    Raises:
        ConfigurationError: this machine lacks the instruction set or the library.
    """
    chosen = settings().kernels
    if chosen == TORCH:
        return None
    loaded = available()
    if chosen == "auto":
        best = next(iter(loaded.values()), None)
        if best is None:
            logger.warning("no compiled kernels for this machine: products are slower")
        return best
    if chosen not in loaded:
        raise ConfigurationError(
            f"SKYNET_KERNELS={chosen}: this machine has {', '.join(loaded) or 'no kernels'}; "
            "use auto, or torch"
        )
    return loaded[chosen]
