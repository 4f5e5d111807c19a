"""Which tensors of a checkpoint a model needs, in the shapes and by the names the file has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture, Weight
from skynet.errors import CheckpointError

Same = Callable[[str, str], bool]  # are two tensors of a file equal, byte for byte?


@dataclass(frozen=True)
class StagedTensor:
    """One tensor of the checkpoint, by its canonical name, and the axis it is cut along."""

    name: str
    shape: tuple[int, ...]
    axis: int


def staged_tensors(arch: Architecture) -> list[StagedTensor]:
    """Every tensor the model needs, each once, in the order in which the layers use them."""
    found: dict[str, StagedTensor] = {}
    for stack in arch.stacks:
        for weight, layer in _weights_in_order(stack):
            for tensor in _tensors(stack, weight, layer):
                found.setdefault(tensor.name, tensor)
    return list(found.values())


def _weights_in_order(arch: Architecture) -> Iterator[tuple[Weight, int | None]]:
    ends = {"final_norm", "head", "head_dense", "head_dense_norm", "head_bias"}
    ends |= {"label_dense", "label_norm", "label_out"}
    for weight in arch.weights:
        if not weight.per_layer and weight.role not in ends:
            yield weight, None
    for layer in range(arch.num_layers):
        for weight in arch.weights:
            if weight.per_layer and weight.is_in(layer):
                yield weight, layer
    for weight in arch.weights:
        if weight.role in ends:
            yield weight, None


def _tensors(arch: Architecture, weight: Weight, layer: int | None) -> Iterator[StagedTensor]:
    shape, axis = arch.stored_shape(weight), arch.stored_axis(weight)
    for piece in range(arch.pieces(weight)):
        yield StagedTensor(weight.tensor(layer, piece=piece), shape, axis)
        if weight.bias:
            yield StagedTensor(weight.tensor(layer, "bias", piece), (arch.stored_bias(weight),), 0)


def resolve_names(arch: Architecture, available: Iterable[str]) -> dict[str, str]:
    """Canonical name of each needed tensor -> its name in the file.

    Files differ in the prefix of the base model's tensors: GPT-2's on the hub have none. Of tied
    tensors a file has one, under any of their names.

    Raises:
        CheckpointError: tensors are missing; names them.
    """
    names, present = [tensor.name for tensor in staged_tensors(arch)], _spelled_anew(available)
    others = _other_names(arch)
    best: dict[str, str] = {}
    missing: list[str] = names
    for prefix in arch.prefixes:
        candidate = {name: _with_prefix(arch, name, prefix) for name in names}
        for name, instead in others.items():
            spelled = [candidate[name], *(_with_prefix(arch, other, prefix) for other in instead)]
            candidate[name] = next((each for each in spelled if each in present), candidate[name])
        lacking = [name for name in names if candidate[name] not in present]
        if not lacking:
            return {name: present[theirs] for name, theirs in candidate.items()}
        if not best or len(lacking) < len(missing):
            best, missing = candidate, lacking
    shown = ", ".join(best[name] for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    raise CheckpointError(
        f"the checkpoint lacks {len(missing)} of the {len(names)} tensors of this "
        f"{arch.model_type} model: {shown}; is a shard of it missing, or is it another model's?"
    )


def absent_tensors(arch: Architecture, available: Iterable[str], same: Same) -> list[str]:
    """The optional tensors that a file lacks, by their canonical names.

    One that the file has as a copy of what would be used instead is none: it is staged once.
    """
    present, absent = _spelled_anew(available), list[str]()
    for stack in arch.stacks:
        for weight in (weight for weight in stack.weights if weight.optional):
            own = _in_file(arch, weight, present)
            instead = _instead(stack.lacking([*absent, weight.tensor()]), weight.role)
            other = None if instead is None else _in_file(arch, instead, present)
            copied = own is not None and other is not None and (own == other or same(own, other))
            if own is None or copied:
                absent.append(weight.tensor())
    return absent


def _instead(arch: Architecture, role: str) -> Weight | None:
    """What is used for a weight of this role that is absent."""
    return arch.weight(role) or (arch.weight("embed") if role == "head" else None)


def _in_file(arch: Architecture, weight: Weight, present: Mapping[str, str]) -> str | None:
    """The file's name of a weight, which may be tied; None if there is none."""
    names = (weight.tensor(), *weight.other_tensors)
    spelled = (_with_prefix(arch, name, prefix) for name in names for prefix in arch.prefixes)
    return next((present[name] for name in spelled if name in present), None)


def _other_names(arch: Architecture) -> dict[str, tuple[str, ...]]:
    """What tied tensors may be called instead, by their canonical names."""
    weights = (weight for stack in arch.stacks for weight in stack.weights)
    return {weight.tensor(): weight.other_tensors for weight in weights if weight.others}


def _spelled_anew(available: Iterable[str]) -> dict[str, str]:
    """Each name as it is spelled today -> as the file has it: norms of 2018 have gamma and beta."""
    anew = {".gamma": ".weight", ".beta": ".bias"}
    found = {}
    for name in available:
        stem, dot, kind = name.rpartition(".")
        found[stem + anew.get(dot + kind, dot + kind)] = name
    return found


def _with_prefix(arch: Architecture, name: str, prefix: str) -> str:
    ours = arch.prefixes[0]
    return prefix + name.removeprefix(ours) if name.startswith(ours) else name
