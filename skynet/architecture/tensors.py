"""The tensors that a model needs of a checkpoint, with the shapes and names that files have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.architecture.stored import stored_axis, stored_bias, stored_shape
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError

Same = Callable[[str, str], bool]  # whether two tensors of a file are equal, byte for byte


@dataclass(frozen=True)
class StagedTensor:
    """One tensor of the checkpoint, by its canonical name, and the axis it is cut along."""

    name: str
    shape: tuple[int, ...]
    axis: int


def staged_tensors(arch: Architecture) -> list[StagedTensor]:
    """Every tensor the model needs, each once, in the order in which the layers use them."""
    tensors: dict[str, StagedTensor] = {}
    for stack in arch.stacks:
        for weight, layer in _weights_in_order(stack):
            for tensor in _tensors(_at(stack, layer), weight, layer):
                tensors.setdefault(tensor.name, tensor)
    return list(tensors.values())


def stored_weights(arch: Architecture) -> Iterator[tuple[Architecture, Weight, str]]:
    """Each tensor that is no bias: the architecture of its stack or layer, its weight (of fused
    ones the first) and its name."""
    seen: set[str] = set()
    for stack in arch.stacks:
        for weight, layer in _weights_in_order(stack):
            arch = _at(stack, layer)
            for piece in range(arch.pieces(weight)):
                name = weight.tensor(layer, piece=piece)
                if name not in seen and not weight.bias_only:
                    seen.add(name)
                    yield arch, weight, name


def _at(stack: Architecture, layer: int | None) -> Architecture:
    return stack if layer is None else stack.at(layer)


def _weights_in_order(arch: Architecture) -> Iterator[tuple[Weight, int | None]]:
    last = {"final_norm", "head", "head_dense", "head_dense_norm", "head_bias"}
    last |= {"label_dense", "label_norm", "label_out", *arch.dense_roles}
    for weight in arch.weights:
        if not weight.per_layer and weight.role not in last:
            yield weight, None
    for layer in range(arch.num_layers):
        for weight in arch.at(layer).weights:
            if weight.per_layer and weight.is_in(layer):
                yield weight, layer
    for weight in arch.weights:
        if weight.role in last:
            yield weight, None


def _tensors(arch: Architecture, weight: Weight, layer: int | None) -> Iterator[StagedTensor]:
    for piece in range(arch.pieces(weight)):
        form = arch.block_format(weight, layer, piece)
        shape, axis = stored_shape(arch, weight, form), stored_axis(weight, form)
        yield StagedTensor(weight.tensor(layer, piece=piece), shape, axis)
        if weight.bias:
            name = weight.tensor(layer, "bias", piece)
            yield StagedTensor(name, (stored_bias(arch, weight),), 0)


def resolve_names(arch: Architecture, available: Iterable[str]) -> dict[str, str]:
    """Canonical name of each needed tensor -> its name in the file.

    Files differ in the prefix of the base model's tensors: those of GPT-2 on the hub have none. A
    file has a tensor under one of its names.

    Raises:
        CheckpointError: tensors are missing; names them.
    """
    names, present = [tensor.name for tensor in staged_tensors(arch)], _current_names(available)
    others_of = other_names(arch)
    best: dict[str, str] = {}
    missing: list[str] = names
    for prefix in arch.prefixes:
        candidate = {name: with_prefix(arch, name, prefix) for name in names}
        for name, others in others_of.items():
            names_in_file = [candidate[name]]
            names_in_file += [with_prefix(arch, other, prefix) for other in others]
            present_names = (each for each in names_in_file if each in present)
            candidate[name] = next(present_names, candidate[name])
        lacking = [name for name in names if candidate[name] not in present]
        if not lacking:
            return {name: present[in_file] for name, in_file in candidate.items()}
        if not best or len(lacking) < len(missing):
            best, missing = candidate, lacking
    shown = ", ".join(best[name] for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    raise CheckpointError(
        f"the checkpoint lacks {len(missing)} of the {len(names)} tensors of this "
        f"{arch.model_type} model: {shown}; is a file of it missing, or is it another model?"
    )


def absent_tensors(arch: Architecture, available: Iterable[str], same: Same) -> list[str]:
    """The optional tensors that a file lacks, by their canonical names.

    A copy of the tensor that would be used instead counts as absent, so that it is staged once.
    """
    present, absent = _current_names(available), list[str]()
    for stack in arch.stacks:
        for weight in (weight for weight in stack.weights if weight.optional):
            name = _in_file(arch, weight, present)
            substitute = _substitute(stack.lacking([*absent, weight.tensor()]), weight.role)
            other = None if substitute is None else _in_file(arch, substitute, present)
            if name is None or (other is not None and (name == other or same(name, other))):
                absent.append(weight.tensor())
    return absent


def lacks_head(arch: Architecture, available: Iterable[str]) -> bool:
    """Whether the file has no tensor of a head that nothing replaces."""
    head = arch.weight("head")
    if head is None or head.optional:
        return False
    return _in_file(arch, head, _current_names(available)) is None


def _substitute(arch: Architecture, role: str) -> Weight | None:
    """The weight that is used when the one of this role is absent."""
    return arch.weight(role) or (arch.weight("embed") if role == "head" else None)


def _in_file(arch: Architecture, weight: Weight, present: Mapping[str, str]) -> str | None:
    """The name in the file of a weight, which may be tied; None if the file has no such tensor."""
    names = (weight.tensor(), *weight.other_tensors())
    candidates = (with_prefix(arch, name, prefix) for name in names for prefix in arch.prefixes)
    return next((present[name] for name in candidates if name in present), None)


def other_names(arch: Architecture) -> dict[str, tuple[str, ...]]:
    """The other names that tensors may have in a file, by their canonical names."""
    return {
        weight.tensor(layer): weight.other_tensors(layer)
        for stack in arch.stacks
        for weight, layer in _weights_in_order(stack)
        if weight.others
    }


def _current_names(available: Iterable[str]) -> dict[str, str]:
    """Current name -> the file's name: norms in files of 2018 have gamma and beta."""
    current = {".gamma": ".weight", ".beta": ".bias"}
    names = {}
    for name in available:
        stem, dot, kind = name.rpartition(".")
        names[stem + current.get(dot + kind, dot + kind)] = name
    return names


def with_prefix(arch: Architecture, name: str, prefix: str) -> str:
    """A canonical name with another prefix of the base model's tensors."""
    canonical = arch.prefixes[0]
    return prefix + name.removeprefix(canonical) if name.startswith(canonical) else name
