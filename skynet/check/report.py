"""What a check found, place by place, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from skynet.check.compare import Difference

DRIFT = 10  # how many times a layer's limit all layers together may be apart


@dataclass(frozen=True)
class Finding:
    """One comparison: what of which shard. `shard` is None of what all shards have."""

    what: str  # "attention", "output", ...
    shard: int | None
    found: Difference


@dataclass(frozen=True)
class Place:
    """An embedding, a layer, or an end: its comparisons in the order of the computation."""

    name: str
    stage: int
    findings: tuple[Finding, ...]
    is_layer: bool = False

    @property
    def worst(self) -> Finding:
        return max(self.findings, key=lambda finding: finding.found.relative)

    def beyond(self, limit: float) -> list[Finding]:
        """Where the place differs first: every shard of the first thing that differs."""
        over = [finding for finding in self.findings if finding.found.relative > limit]
        return [finding for finding in over if finding.what == over[0].what]

    def address(self, finding: Finding) -> str:
        stage = f"stage{self.stage}"
        return stage if finding.shard is None else f"{stage}.shard{finding.shard}"


@dataclass(frozen=True)
class Answer:
    """What all layers come to, each of ours having read what ours made: a token, a label.

    ours, theirs: its number; None where the numbers themselves are the answer.
    """

    what: str  # "next token", ...
    drift: Difference  # of the numbers that it is chosen by
    skynet: int | None = None
    reference: int | None = None
    text: str = ""  # of ours

    @property
    def same(self) -> bool:
        """Chosen alike on both sides."""
        return self.skynet is not None and self.skynet == self.reference


@dataclass
class Report:
    """Of one model in one shape."""

    model: str
    model_type: str
    stages: int
    shards: int
    dtype: str
    limit: float
    versions: str  # of what it was compared with
    num_tokens: int
    notes: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    answer: Answer | None = None
    peak_bytes: int = 0

    @property
    def differing(self) -> list[Place]:
        return [place for place in self.places if place.worst.found.relative > self.limit]

    @property
    def equal(self) -> bool:
        return not self.differing and not self.drifted

    @property
    def drifted(self) -> bool:
        """All places agree, and yet they add up to another answer."""
        if self.answer is None or self.answer.drift.relative <= DRIFT * self.limit:
            return False
        return not self.answer.same

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "model": self.model,
            "model_type": self.model_type,
            "stages": self.stages,
            "shards": self.shards,
            "dtype": self.dtype,
            "limit": self.limit,
            "compared_with": self.versions,
            "prompt_tokens": self.num_tokens,
            "places": [self._place(place) for place in self.places],
            "differing": [place.name for place in self.differing],
            "first": self._first(),
            "answer": self._answer(),
            "peak_bytes": self.peak_bytes,
            "notes": self.notes,
        }

    def _place(self, place: Place) -> dict[str, Any]:
        worst = place.worst
        return {
            "name": place.name,
            "what": worst.what,
            "address": place.address(worst),
            **worst.found.to_json(),
        }

    def _answer(self) -> dict[str, Any] | None:
        found = self.answer
        if found is None:
            return None
        return {
            "what": found.what,
            "skynet": found.skynet,
            "transformers": found.reference,
            "text": found.text,
            **found.drift.to_json(),
        }

    def _first(self) -> dict[str, Any] | None:
        """The first place that differs, and its shards that do."""
        if not self.differing:
            return None
        place = self.differing[0]
        over = place.beyond(self.limit)
        return {
            "name": place.name,
            "what": over[0].what,
            "shards": [{"address": place.address(one), **one.found.to_json()} for one in over],
        }

    def lines(self) -> Iterator[str]:
        """For people: a verdict, numbers, what to do."""
        yield (
            f"{self.model} ({self.model_type}), {self.stages} x {self.shards}, {self.dtype}, "
            f"{self.num_tokens} prompt tokens, against {self.versions}"
        )
        if self.differing:
            yield from self._differs()
        elif self.places:
            worst = max(self.places, key=lambda place: place.worst.found.relative)
            yield (
                f"equal: {self._compared()}. Largest difference "
                f"{worst.worst.found.relative:.1e} of a row's largest number ({worst.name}, "
                f"{worst.worst.what}); limit {self.limit:g}"
            )
        if self.answer is not None:
            yield self._verdict(self.answer)
        yield from self.notes
        yield f"peak memory {self.peak_bytes / 1e6:.0f} MB, of the whole process"

    def _compared(self) -> str:
        """What there was: 12 layers, embedding and head."""
        *others, last = [place.name for place in self.places if not place.is_layer]
        layers = f"{len(self.places) - len(others) - 1} layers"
        return f"{', '.join([layers, *others])} and {last}"

    def _differs(self) -> Iterator[str]:
        place, others = self.differing[0], [place.name for place in self.differing[1:]]
        over = place.beyond(self.limit)
        yield f"DIFFERS first in {place.name}, {over[0].what}; limit {self.limit:g}"
        for one in over:
            yield (
                f"  {place.address(one)}: {one.found.absolute:.3g}, which is "
                f"{one.found.relative:.3g} of the row's largest number, at token "
                f"{one.found.token}, number {one.found.index}"
            )
        if others:
            shown = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
            yield f"  besides, each from the right input: {shown}"
        yield self._advice(place, over)

    def _advice(self, place: Place, over: list[Finding]) -> str:
        shards = {one.shard for one in over}
        if None not in shards and len(shards) < self.shards:
            return (
                "One shard is wrong and its peers are right: what it reads of the weights is "
                "suspect, or how it is cut. Try --shards 1 and another --shards; if those are "
                "equal, report this output with config.json as a bug of SkyNet's split."
            )
        every = "" if None in shards else "Every shard differs: "
        return (
            f"{every}SkyNet does not compute {place.name} as Transformers does. "
            "Try --shards 1 and, after bfloat16, --dtype float32; if it stays, do not trust "
            "SkyNet's answers with this model, and report this output with config.json."
        )

    def _verdict(self, found: Answer) -> str:
        apart = f"{found.drift.relative:.1e} of the largest number apart after all layers"
        wrong = self.drifted or bool(self.differing)
        if found.skynet is None:
            return f"{found.what}: {'DIFFERS: ' if wrong else ''}{apart}"
        if found.same:
            text = f" {found.text!r}" if found.text else ""
            return f"{found.what}: {found.skynet}{text} on both; logits {apart}"
        kind = "DIFFERS" if wrong else "near tie"
        return f"{found.what}: {kind}: {found.skynet} here, {found.reference} there; logits {apart}"
