"""The engine without Redis or Celery: shards that store tokens, and a journal in lists."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from plans import plan_for

from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Rope
from skynet.engine.engine import Engine, EngineOptions
from skynet.engine.output import ModelInfo
from skynet.engine.sequence import Sequence
from skynet.errors import SkynetError
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.request.record import Options, Record, Token
from skynet.tokenizer.text import Text
from skynet.wire.step import Best, Candidates, Part, Row, Step

VOCAB = 1000
FEW = 40


TINY = load_architecture(
    {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    }
)


def tiny_plan(stages: int = 1, shards: int = 2, **options: Any) -> Plan:
    return plan_for(TINY, stages, shards, **options)


def seq2seq_plan(stages: int = 1, shards: int = 2, **options: Any) -> Plan:
    """Two encoder layers and three decoder layers."""
    arch = load_architecture(
        {
            "model_type": "bart",
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 6,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 80,
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
        }
    )
    return plan_for(arch, stages, shards, **options)


def new_sequence(
    name: str,
    prompt: Items[int],
    *,
    deadline: float = 1e12,
    end_ids: Items[int] = (),
    max_length: int = 512,
    text: Text | None = None,
    sample_group: str = "",
    rope_switch: int = 0,
    arch: Architecture = TINY,
    **options: Any,
) -> Sequence:
    checked = Options(**{"max_tokens": 4, **options})
    if rope_switch:
        longrope = Rope(8, "longrope", original_positions=rope_switch, long_divisors=(1.0,) * 4)
        arch = replace(arch, ropes=(longrope,) * arch.num_layers)
    return Sequence.of(
        Record(name, tuple(prompt), checked, 0.0, deadline, sample_group=sample_group),
        ModelInfo(arch, text or Text({}), frozenset(end_ids), max_length),
    )


def append(sequence: Sequence, token: int) -> Token:
    """A token comes, without a step."""
    sequence.timings.note_token()
    return sequence.output.append(token)


def next_token(known: Items[int]) -> int:
    """The fake model's next token, a hash of all tokens in their order."""
    return zlib.crc32(str(list(known)).encode()) % VOCAB


def few_logits(known: Items[int]) -> npt.NDArray[np.float32]:
    """Logits of the tokens 0 to FEW, the fake model's vocabulary for beam search."""
    seed = zlib.crc32(str(list(known)).encode())
    return np.random.default_rng(seed).normal(size=FEW).astype(np.float32)


def answer(prompt: Items[int], count: int) -> list[int]:
    """The undisturbed run of one request alone."""
    known = list(prompt)
    for _ in range(count):
        known.append(next_token(known))
    return known[len(prompt) :]


class FakeShards:
    """A carrier whose shards store each slot's tokens and refuse rows that leave a gap.

    encoder_layers: steps that start before them are encoder steps, stored by place.
    """

    def __init__(self, num_shards: int = 2, encoder_layers: int = 0) -> None:
        self.num_shards = num_shards
        self.encoder_layers = encoder_layers
        self.slots: dict[int, list[int]] = {}
        self.encoder_kvs: dict[int, list[int]] = {}
        self.sent: list[Step] = []
        self.given_up: list[int] = []
        self.failures: list[SkynetError] = []
        self.replays: list[tuple[int, int]] = []
        self._parts: dict[int, list[Part]] = {}

    def send(self, step: Step) -> None:
        self.sent.append(step)
        shard_candidates = []
        if step.start < self.encoder_layers:
            self.encoder_kvs |= {row.slot: list(row.tokens) for row in step.rows}
        else:
            self._copy(step)
            shard_candidates = [self._run(row) for row in step.rows]
            shard_candidates = [candidates for candidates in shard_candidates if candidates]
        self._parts[step.number] = [
            Part(candidates=[candidates[shard] for candidates in shard_candidates], compute_s=0.01)
            for shard in range(self.num_shards)
        ]

    def _copy(self, step: Step) -> None:
        """Copy all slots at once: none is both source and target."""
        targets = {row.slot for row in step.rows if row.source is not None}
        for row in step.rows:
            if row.source is None:
                continue
            known = self.slots[row.source]
            if row.start > len(known) or row.source in targets:
                raise AssertionError(f"{row} takes more than {len(known)} tokens, or they change")
            self.slots[row.slot] = known[: row.start]

    def _run(self, row: Row) -> list[Candidates]:
        slot, encoded = self.slots.setdefault(row.slot, []), []
        if row.start > len(slot):
            raise AssertionError(f"{row} leaves a gap after {len(slot)} tokens")
        slot[row.start :] = row.tokens
        if self.encoder_layers:
            place, length = row.encoder_kv or (-1, 0)
            encoded = self.encoder_kvs[place]
            if len(encoded) != length:
                raise AssertionError(f"{row}: the encoder KV has {len(encoded)} tokens")
        if row.logits_request is None:
            return []
        if row.logits_request.logprobs is None:
            return self._candidates(next_token([*encoded, *slot]))
        return self._candidates_of_few([*encoded, *slot])

    def _candidates_of_few(self, known: Items[int]) -> list[Candidates]:
        """Logits of the tokens 0 to FEW, by shard."""
        shard_candidates = []
        for shard in range(self.num_shards):
            ids = np.arange(shard, FEW, self.num_shards, dtype=np.int32)
            logits = few_logits(known)[ids]
            total = float(np.log(np.exp(logits.astype(np.float64)).sum()))
            best = Best(ids[:0], logits[:0], total)
            shard_candidates.append(Candidates(ids, logits, float(logits.max()), 1.0, best))
        return shard_candidates

    def _candidates(self, token: int) -> list[Candidates]:
        """One shard has the best token, each of the others a different, worse one."""
        owner = token % self.num_shards
        return [
            Candidates(
                np.array([token if shard == owner else VOCAB + shard], np.int32),
                np.array([9.0 if shard == owner else 1.0], np.float32),
                9.0,
                1.0,
            )
            for shard in range(self.num_shards)
        ]

    def give_up(self, step: Step) -> None:
        self.given_up.append(step.number)

    def step_failed(self, error: SkynetError) -> None:
        self.failures.append(error)

    def replayed(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        self.replays.append((num_sequences, num_tokens))

    def parts(self, number: int) -> list[Part]:
        return self._parts[number]


class Notes:
    """A journal in lists. Refuses tokens out of order and anything after an end."""

    def __init__(self) -> None:
        self.written: dict[str, list[int]] = {}
        self.beams: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, str | SkynetError] = {}
        self.cancel_asked: set[str] = set()
        self.running: set[str] = set()

    def started(self, sequences: Items[Sequence]) -> None:
        for sequence in sequences:
            if sequence.id in self.running:
                raise AssertionError(f"{sequence.id} started twice")
            self.running.add(sequence.id)

    def tokens(self, tokens: Items[tuple[Sequence, Token]]) -> tuple[set[str], set[str]]:
        for sequence, token in tokens:
            written = self.written.setdefault(sequence.id, [])
            if sequence.id in self.ended or token.index != len(written):
                raise AssertionError(f"{sequence.id}: {token} after {len(written)} tokens")
            written.append(token.id)
        return self.cancel_asked & {sequence.id for sequence, _ in tokens}, set()

    def finished(self, sequence: Sequence) -> None:
        if sequence.output.pending:
            self.tokens([(sequence, token) for token in sequence.output.pending])
            self.beams[sequence.id] = sequence.output.answer["beams"]
        self._end(sequence, sequence.finish_reason)

    def failed(self, sequence: Sequence, error: SkynetError) -> None:
        self._end(sequence, error)

    def _end(self, sequence: Sequence, how: str | SkynetError) -> None:
        if sequence.id in self.ended:
            raise AssertionError(f"{sequence.id} ended twice: {self.ended[sequence.id]}, {how}")
        self.ended[sequence.id] = how


class Bench:
    """An engine on fakes, with a clock that stands still until it is set."""

    def __init__(self, plan: Plan | None = None, **options: Any) -> None:
        self.now = 100.0
        self.plan = plan or tiny_plan()
        self.shards = FakeShards(self.plan.num_shards, self.plan.encoder_layers)
        self.notes = Notes()
        self.engine = Engine(
            self.plan, self.shards, self.notes, EngineOptions(**options), lambda: self.now
        )
        self.engine.ready = True

    def finish_oldest(self) -> int:
        """Finish the oldest step; its number."""
        number = min(self.engine.in_flight)
        self.engine.finish_step(self.plan.epoch, number, self.shards.parts(number))
        return number

    def recover(self, plan: Plan | None = None) -> None:
        """Resume with another plan, or a new epoch of this one, whose shards are empty."""
        self.engine.suspend()
        self.shards.slots.clear()
        self.shards.encoder_kvs.clear()
        self.plan = (plan or self.plan).with_epoch(self.plan.epoch + 1)
        self.shards.num_shards = self.plan.num_shards
        self.engine.resume(self.plan)

    def live_through(self, events: Items[str], waiting: list[Sequence]) -> None:
        """Accept sequences, finish steps and lose shards by these events; then answer all."""
        for event in events:
            if event == "lose":
                self.recover()
            elif event == "come" and waiting:
                self.engine.accept(waiting.pop(0))
            elif event == "step" and self.engine.in_flight:
                self.finish_oldest()
        for sequence in waiting:
            self.engine.accept(sequence)
        self.run()

    def run(self) -> None:
        """Finish steps until none is in flight."""
        for _ in range(10_000):
            if not self.engine.in_flight:
                return
            self.finish_oldest()
        raise AssertionError("the engine does not finish")
