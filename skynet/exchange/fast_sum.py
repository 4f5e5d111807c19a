"""The quick way of small float32 sums over links: one call into C, see kernels/exchange.c."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from skynet import kernels
from skynet.exchange.link import BUFFER_BYTES, Link
from skynet.kernels.build import library_name
from skynet.kernels.library import kernels as chosen_kernels
from skynet.kernels.sums import Sums
from skynet.wire.exchange_message import HEADER as MESSAGE_HEADER
from skynet.wire.exchange_message import POSITION_AT, header_of
from skynet.wire.frame import FLOAT32, HEADER, MAGIC

HEAD_BYTES = MESSAGE_HEADER.size + HEADER.size
MAX_FLOATS = (BUFFER_BYTES - HEAD_BYTES) // 4


class _Link(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int32),
        ("shard", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("sent", ctypes.c_int64),
        ("received", ctypes.c_int64),
    )


@lru_cache(maxsize=1)
def _function() -> Any:
    """The function in C; None if the kernels are not built, or not wanted."""
    library = chosen_kernels()
    if library is None:
        return None
    path = Path(kernels.__file__).with_name(library_name(library.variant))
    function = ctypes.CDLL(str(path)).skynet_sum_over_links
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        *(ctypes.POINTER(_Link), ctypes.c_int32, ctypes.c_int32),
        *(ctypes.c_char_p, count, pointer, count, pointer, ctypes.c_double),
    ]
    function.restype = ctypes.c_int
    return function


class FastSum:
    """Sums over the links to all peers of a shard."""

    def __init__(self, links: Mapping[int, Link], shard: int) -> None:
        self.links = {peer: links[peer] for peer in sorted(links)}
        self.shard = shard
        self._function = _function()
        self._shape = (0, 0)
        self._frame_header = b""
        self._buffers: list[bytearray | None] = [None for _ in links]
        self._c_links = (_Link * len(links))()
        for c_link, (peer, link) in zip(self._c_links, self.links.items(), strict=True):
            c_link.fd, c_link.shard = link.fileno(), peer

    @classmethod
    def over(cls, links: Mapping[int, Link], shard: int, num_shards: int) -> FastSum | None:
        """None: without the library, or with peers that have no link."""
        if not links or len(links) < num_shards - 1 or _function() is None:
            return None
        return cls(links, shard)

    def run(
        self, tag: bytes, shape: tuple[int, int], data: int, total: int, spin_s: float
    ) -> bool | None:
        """Whether `total` has the sum; False: `resume` tells the links how far it has come.

        None: nothing was done, since the sum is large, or a link is in the middle of a message.

        data, total: addresses of contiguous float32 of this shape.
        """
        head = self._head(tag, shape)
        if head is None:
            return None
        count = shape[0] * shape[1]
        done = self._function(
            self._c_links,
            *(len(self.links), self.shard, head, HEAD_BYTES, data, count, total, spin_s),
        )
        return bool(done)

    def sums(self, tag: bytes, shape: tuple[int, int], spin_s: float) -> Sums | None:
        """For the sums of this shape from the one with that tag on, as `run` makes them; valid
        until the next call. None: as of `run`.
        """
        head = self._head(tag, shape)
        if head is None:
            return None
        self._sums_head = ctypes.create_string_buffer(head, HEAD_BYTES)
        return Sums(
            links=ctypes.addressof(self._c_links),
            head=ctypes.addressof(self._sums_head),
            head_bytes=HEAD_BYTES,
            position_at=POSITION_AT,
            spin_s=spin_s,
            num_links=len(self.links),
            shard=self.shard,
        )

    def _head(self, tag: bytes, shape: tuple[int, int]) -> bytes | None:
        """Of this shard's message; None: too large, or a link is in the middle of a message."""
        count = shape[0] * shape[1]
        if not 0 < count <= MAX_FLOATS or not self._is_idle():
            return None
        if shape != self._shape:
            self._frame_header = HEADER.pack(MAGIC, FLOAT32, *shape)
            self._shape = shape
        return header_of(tag, HEADER.size + 4 * count) + self._frame_header

    def resume(self, parts: tuple[bytes | memoryview, ...]) -> None:
        """Hand a sum over to the links; parts: of this shard's message."""
        for c_link, link in zip(self._c_links, self.links.values(), strict=True):
            link.resume(c_link.received, c_link.sent, parts)

    def _is_idle(self) -> bool:
        for at, link in enumerate(self.links.values()):
            if not link.is_idle:
                return False
            if link.buffer is not self._buffers[at]:
                self._buffers[at] = link.buffer
                start = ctypes.c_char.from_buffer(link.buffer)
                self._c_links[at].buffer = ctypes.addressof(start)
        return True
