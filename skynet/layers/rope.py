"""Rotary position embedding as a complex product, with the frequencies of Transformers.

The numbers of a rotated pair are adjacent here: the rows of Wq and Wk are interleaved when they are
loaded (heads.py). Q and K are permuted alike, so dot products do not change.
"""

from __future__ import annotations

import math

import torch

from skynet.architecture.positions import Rope


def inverse_frequencies(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32: the frequencies of sequences up to the original length."""
    powers = _powers(rope)
    plain = 1.0 / powers
    if rope.kind == "longrope":
        return 1.0 / (torch.tensor(rope.divisors) * powers)
    if rope.kind == "proportional":
        plain[rope.rotated :] = 0
    if rope.kind in ("linear", "proportional"):
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope)
    return plain


def _llama3(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Low frequencies are scaled, high ones are not, and those between are blended."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_positions / rope.low_freq_factor
    shortest = rope.original_positions / rope.high_freq_factor
    spread = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / spread
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > longest, plain / rope.factor, plain)
    between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(between, blended, scaled)


def _yarn(rope: Rope) -> torch.Tensor:
    """YaRN's "NTK by parts" (Peng et al., 2023, arXiv:2309.00071, section 3.2)."""
    powers = _powers(rope)

    def dimension(rotations: float) -> float:
        period = rope.original_positions / (rotations * 2 * math.pi)
        return rope.dims * math.log(period) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    if low == high:
        high += 0.001  # the ramp is a step; this avoids a division by zero
    ramp = ((torch.arange(rope.dims // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    unscaled = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - unscaled) + 1.0 / powers * unscaled


def dynamic_frequencies(rope: Rope, lengths: torch.Tensor) -> torch.Tensor:
    """(tokens, dims / 2) float32: the frequencies of tokens by the length of their sequence.

    lengths: (tokens,) int64, when the token was computed.
    """
    limit = rope.original_positions
    scale = rope.factor * lengths.clamp(min=limit) / limit - (rope.factor - 1)
    theta = rope.theta * scale ** (rope.dims / (rope.dims - 2))
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    scaled = 1.0 / theta[:, None] ** exponents.to(lengths.device)
    plain = inverse_frequencies(rope).to(lengths.device)
    return torch.where((lengths > limit)[:, None], scaled, plain)


def long_frequencies(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32: `longrope` in sequences longer than `original_positions`."""
    return 1.0 / (torch.tensor(rope.long_divisors) * _powers(rope))


def _powers(rope: Rope) -> torch.Tensor:
    """(dims / 2,) float32: the reciprocals of the unscaled frequencies."""
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    powers: torch.Tensor = rope.theta**exponents
    return powers


class Rotary:
    """Computes the factors that multiply a step's queries and keys."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._rope = rope
        self._frequencies = inverse_frequencies(rope).to(device)
        self._long = long_frequencies(rope).to(device) if rope.long_divisors else None
        self._radius = torch.tensor(rope.attention_factor, device=device)

    def factors(self, positions: torch.Tensor, prompt_lengths: torch.Tensor) -> torch.Tensor:
        """(tokens, 1, dims / 2) complex64 for tokens at `positions` (tokens,).

        Some scaling depends on the length of the sequence when a token is computed. It is the
        prompt's length for all of its tokens, in whatever chunks, and one more per later token.
        """
        frequencies = self._frequencies
        if self._rope.kind == "dynamic":
            lengths = torch.maximum(prompt_lengths, positions + 1)
            frequencies = dynamic_frequencies(self._rope, lengths)
        elif self._long is not None:
            lengths = torch.maximum(prompt_lengths, positions + 1)
            is_long = (lengths > self._rope.original_positions)[:, None]
            frequencies = torch.where(is_long, self._long, frequencies)
        angles = positions[:, None].float() * frequencies
        return torch.polar(self._radius.expand_as(angles), angles)[:, None]


def rotate(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply `x` (tokens, heads, dims) float32, pairs adjacent, in place by `factors`."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(factors)
    return x
