"""The result of a check, place by place, with advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from skynet.checkpoint.bad_numbers import spell_counts
from skynet.planning.promise import EXACT, promise, spelled_out
from skynet.reference.difference import DRIFT, Difference


@dataclass(frozen=True)
class Finding:
    """One comparison, of one shard; `shard` is None if it is of all."""

    what: str  # "attention", "output", ...
    shard: int | None
    difference: Difference


@dataclass(frozen=True)
class Place:
    """An embedding, a layer, an encoder output or a head: comparisons in order of computation."""

    name: str
    stage: int
    findings: tuple[Finding, ...]
    is_layer: bool = False

    @property
    def worst(self) -> Finding:
        return max(self.findings, key=lambda finding: finding.difference.relative)

    def beyond(self, limit: float) -> list[Finding]:
        """The first result that differs, in every shard where it does."""
        over = [finding for finding in self.findings if finding.difference.relative > limit]
        return [finding for finding in over if finding.what == over[0].what]

    def address(self, finding: Finding) -> str:
        stage = f"stage{self.stage}"
        return stage if finding.shard is None else f"{stage}.shard{finding.shard}"


@dataclass(frozen=True)
class Answer:
    """The answer of all layers, SkyNet's on SkyNet's inputs: a token, a label, an embedding.

    skynet, reference: its index; None if the numbers themselves are the answer.
    """

    what: str  # "next token", ...
    drift: Difference  # of the logits, or of the numbers
    skynet: int | None = None
    reference: int | None = None
    text: str = ""  # of SkyNet's

    @property
    def same(self) -> bool:
        """Both sides choose the same."""
        return self.skynet is not None and self.skynet == self.reference


@dataclass
class Report:
    """The check of one model in one shape.

    bad_numbers: how many numbers of a tensor are NaN or infinite, by its name; if there are any,
        nothing is compared.
    """

    model: str
    model_type: str
    stages: int
    shards: int
    dtype: str
    limit: float
    versions: str  # of Transformers and torch
    num_tokens: int
    notes: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    answer: Answer | None = None
    peak_bytes: int = 0
    bad_numbers: dict[str, int] = field(default_factory=dict)

    @property
    def differing(self) -> list[Place]:
        return [place for place in self.places if place.worst.difference.relative > self.limit]

    @property
    def equal(self) -> bool:
        return not self.bad_numbers and not self.differing and not self.drifted

    @property
    def drifted(self) -> bool:
        """The answer differs, by more than rounding through all layers."""
        if self.answer is None or self.answer.drift.relative <= DRIFT * self.limit:
            return False
        return not self.answer.same

    @property
    def promise(self) -> str:
        """What holds for answers of a cluster that computes in this dtype; "" if nothing does."""
        promised, answer = promise(self.dtype), self.answer
        differs = answer is not None and answer.skynet is not None and not answer.same
        return "" if not self.equal or (differs and promised == EXACT) else promised

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "promise": self.promise,
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
            "bad_numbers": self.bad_numbers,
        }

    def _place(self, place: Place) -> dict[str, Any]:
        worst = place.worst
        return {
            "name": place.name,
            "what": worst.what,
            "address": place.address(worst),
            **worst.difference.to_json(),
        }

    def _answer(self) -> dict[str, Any] | None:
        answer = self.answer
        if answer is None:
            return None
        return {
            "what": answer.what,
            "skynet": answer.skynet,
            "transformers": answer.reference,
            "text": answer.text,
            **answer.drift.to_json(),
        }

    def _first(self) -> dict[str, Any] | None:
        """The first place that differs, with the shards where it does."""
        if not self.differing:
            return None
        place = self.differing[0]
        over = place.beyond(self.limit)
        return {
            "name": place.name,
            "what": over[0].what,
            "shards": [{"address": place.address(one), **one.difference.to_json()} for one in over],
        }

    def lines(self) -> Iterator[str]:
        """Text for a terminal: verdict, numbers, advice."""
        yield (
            f"{self.model} ({self.model_type}), {self.stages} x {self.shards}, {self.dtype}, "
            f"{self.num_tokens} prompt tokens, against {self.versions}"
        )
        if self.bad_numbers:
            yield (
                f"BAD WEIGHTS: NaN or infinity in {spell_counts(self.bad_numbers)}. Nothing was "
                "compared; download the checkpoint again, or convert it again from a good one"
            )
        elif self.differing:
            yield from self._differs()
        elif self.places:
            worst = max(self.places, key=lambda place: place.worst.difference.relative)
            yield (
                f"equal: {self._compared()}. Largest difference "
                f"{worst.worst.difference.relative:.1e} of a row's largest number ({worst.name}, "
                f"{worst.worst.what}); limit {self.limit:g}"
            )
        if self.answer is not None:
            yield self._verdict(self.answer)
        if self.promise:
            yield spelled_out(self.promise)
        yield from self.notes
        yield f"peak memory of the process {self.peak_bytes / 1e6:.0f} MB"

    def _compared(self) -> str:
        """The places: 12 layers, embedding and head."""
        *others, last = [place.name for place in self.places if not place.is_layer]
        layers = f"{len(self.places) - len(others) - 1} layers"
        return f"{', '.join([layers, *others])} and {last}"

    def _differs(self) -> Iterator[str]:
        place, others = self.differing[0], [place.name for place in self.differing[1:]]
        over = place.beyond(self.limit)
        yield f"DIFFERS first in {place.name}, {over[0].what}; limit {self.limit:g}"
        for one in over:
            yield (
                f"  {place.address(one)}: {one.difference.absolute:.3g}, which is "
                f"{one.difference.relative:.3g} of the row's largest number, at token "
                f"{one.difference.token}, number {one.difference.index}"
            )
        if others:
            shown = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
            yield f"  and, from correct inputs, in: {shown}"
        yield self._advice(place, over)

    def _advice(self, place: Place, over: list[Finding]) -> str:
        shards = {one.shard for one in over}
        if None not in shards and len(shards) < self.shards:
            return (
                "Some shards are wrong and the others right: suspect their slice of the weights, "
                "or the cut. Try --shards 1 and another --shards; if those are equal, report this "
                "output with config.json as a bug of SkyNet's split."
            )
        every = "" if None in shards else "Every shard differs: "
        return (
            f"{every}SkyNet does not compute {place.name} as Transformers does. "
            "Try --shards 1 and --dtype float32; if it still differs, do not trust SkyNet's "
            "answers with this model, and report this output with config.json."
        )

    def _verdict(self, answer: Answer) -> str:
        what, wrong = answer.what, self.drifted or bool(self.differing)
        apart = f"{answer.drift.relative:.1e} of the largest number apart after all layers"
        if answer.skynet is None:
            return f"{what}: {'DIFFERS: ' if wrong else ''}{apart}"
        if answer.same:
            text = f" {answer.text!r}" if answer.text else ""
            return f"{what}: {answer.skynet}{text} on both; logits {apart}"
        kind = "DIFFERS" if wrong else "near tie"
        both = f"SkyNet {answer.skynet}, Transformers {answer.reference}"
        return f"{what}: {kind}: {both}; logits {apart}"
