"""Rotary position embedding as a complex product, its frequencies as in Transformers.

The rotated pairs of a head lie next to each other here: the rows of Wq and Wk are interleaved when
they are loaded (heads.py). Q and K are permuted alike, so no dot product changes.
"""

from __future__ import annotations

import math

import torch

from skynet.architecture.positions import Rope


def inverse_frequencies(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32; those of sequences that are not too long for them."""
    powers = _powers(rope)
    plain = 1.0 / powers
    if rope.kind == "longrope":
        return 1.0 / (torch.tensor(rope.divisors) * powers)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope)
    return plain


def _llama3(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_positions / rope.low_freq_factor
    shortest = rope.original_positions / rope.high_freq_factor
    spread = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / spread
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    stretched = torch.where(wavelength > longest, plain / rope.factor, plain)
    between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(between, blended, stretched)


def _yarn(rope: Rope) -> torch.Tensor:
    """YaRN's "NTK by parts" (Peng et al., 2023, arXiv:2309.00071, section 3.2)."""
    powers = _powers(rope)

    def dimension(rotations: float) -> float:
        turns = rope.original_positions / (rotations * 2 * math.pi)
        return rope.dims * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    if low == high:
        high += 0.001  # the ramp is a step: any slope will do, but not a division by zero
    ramp = ((torch.arange(rope.dims // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def dynamic_frequencies(rope: Rope, lengths: torch.Tensor) -> torch.Tensor:
    """Frequencies of tokens whose sequence had `lengths` (tokens,) int64 when they were computed.

    Returns (tokens, rope.dims / 2) float32.
    """
    limit = rope.original_positions
    stretch = rope.factor * lengths.clamp(min=limit) / limit - (rope.factor - 1)
    theta = rope.theta * stretch ** (rope.dims / (rope.dims - 2))
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    stretched = 1.0 / theta[:, None] ** exponents.to(lengths.device)
    plain = inverse_frequencies(rope).to(lengths.device)
    return torch.where((lengths > limit)[:, None], stretched, plain)


def long_frequencies(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32: those of `longrope` in sequences longer than `original_positions`."""
    return 1.0 / (torch.tensor(rope.long_divisors) * _powers(rope))


def _powers(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32: what frequencies are 1 over, before they are stretched."""
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    powers: torch.Tensor = rope.theta**exponents
    return powers


class Rotary:
    """Makes the factors by which a step's queries and keys are multiplied."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._rope = rope
        self._frequencies = inverse_frequencies(rope).to(device)
        self._long = long_frequencies(rope).to(device) if rope.long_divisors else None

    def factors(self, positions: torch.Tensor, prompt_lengths: torch.Tensor) -> torch.Tensor:
        """For tokens at `positions` (tokens,), (tokens, 1, dims / 2) complex64.

        Some stretching looks at how long the sequence is when a token is computed: the prompt for
        all of its tokens, however it is cut into chunks, and one more for each later token.
        """
        frequencies, lengths = self._frequencies, torch.maximum(prompt_lengths, positions + 1)
        if self._rope.kind == "dynamic":
            frequencies = dynamic_frequencies(self._rope, lengths)
        elif self._long is not None:
            is_long = (lengths > self._rope.original_positions)[:, None]
            frequencies = torch.where(is_long, self._long, frequencies)
        angles = positions[:, None].float() * frequencies
        radius = torch.tensor(self._rope.attention_factor, device=angles.device)
        return torch.polar(radius.expand_as(angles), angles)[:, None]


def rotate(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply `x` (tokens, heads, dims) float32, pairs adjacent, in place by `factors`."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(factors)
    return x
