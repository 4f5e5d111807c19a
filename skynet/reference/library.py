"""The installed Transformers library: without its output, and which parameters stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings from Transformers; its errors are exceptions anyway."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def stays_float32(model: Any, name: str) -> bool:
    """Does Transformers keep this parameter or buffer in float32 where others are bfloat16?"""
    return any(each in name for each in model._keep_in_fp32_modules_strict or ())
