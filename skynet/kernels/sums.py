"""What the kernels need to sum partials over direct links; see sides.c."""

from __future__ import annotations

import ctypes

Pointer, Long = ctypes.c_void_p, ctypes.c_int64


class Sums(ctypes.Structure):
    """How the sums of a run of sides are made by direct links."""

    _fields_ = (
        ("links", Pointer),
        ("head", Pointer),
        ("total", Pointer),
        ("head_bytes", Long),
        ("position_at", Long),
        ("count", Long),
        ("spin_s", ctypes.c_double),
        ("waited_s", ctypes.c_double),
        ("num_links", ctypes.c_int32),
        ("shard", ctypes.c_int32),
    )
