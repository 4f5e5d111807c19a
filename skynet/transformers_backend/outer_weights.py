"""The weights outside of the layers of a traced model: embedding, last norm and head."""

from __future__ import annotations

from torch import nn

from skynet.architecture.transformers_model import TransformersWeight
from skynet.errors import UnsupportedModel
from skynet.transformers_backend.layer_weights import replicated
from skynet.transformers_backend.styles import Styles
from skynet.transformers_backend.trace import Trace
from skynet.transformers_backend.whole import direct_parameters, is_norm


def embedding_weight(trace: Trace, styles: Styles) -> TransformersWeight:
    """The token embedding.

    Raises:
        UnsupportedModel: the plan cuts another table.
    """
    embedding = trace.model.get_input_embeddings()
    path = trace.paths[id(embedding)]
    for table in styles.tables:
        if table != path:
            raise trace.refusal("", f"cuts a table, {table}, that is not the token embedding")
    sizes = tuple(embedding.weight.shape)
    return TransformersWeight("embed", path, "vocab", "vocab", sizes=sizes, style="gather")


def head_weight(trace: Trace, tied: bool) -> TransformersWeight:
    """The head.

    Raises:
        UnsupportedModel: it is not a plain product of the embedding's shape.
    """
    model = trace.model
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UnsupportedModel(
            f"model_type {trace.model_type!r} has a {type(head).__name__} for a head, "
            "not a plain Linear"
        )
    path, table = trace.paths[id(head)], model.get_input_embeddings().weight
    if head.weight.shape != table.shape:
        raise trace.refusal(
            path, f"is {list(head.weight.shape)}, and the embedding {list(table.shape)}"
        )
    sizes, bias = tuple(head.weight.shape), head.bias is not None
    if tied and bias:
        raise trace.refusal(path, "is tied to the embedding, and has a bias")
    return TransformersWeight("head", path, "vocab", "vocab", bias, sizes=sizes)


def norm_weights(trace: Trace, path: str, outer: set[str]) -> list[TransformersWeight]:
    """The last norm, if it has weights.

    path: of the list of layers; outer: paths of embedding and head.

    Raises:
        UnsupportedModel: another module outside of the layers has parameters; names it.
    """
    outside = [
        (name, module)
        for name, module in trace.model.named_modules()
        if direct_parameters(module) and not name.startswith(f"{path}.") and name not in outer
    ]
    weights: list[TransformersWeight] = []
    for name, module in outside:
        parameters = direct_parameters(module)
        plain = "weight" in parameters and parameters.keys() <= {"weight", "bias"}
        if weights or not (plain and is_norm(module)) or not _is_after_layers(trace, name):
            raise trace.refusal(
                name, "has parameters, and is neither in a layer nor embedding, norm or head"
            )
        sizes = tuple(parameters["weight"].shape)
        weights.append(replicated("final_norm", name, sizes, bias="bias" in parameters))
    return weights


def _is_after_layers(trace: Trace, path: str) -> bool:
    last = trace.called.index(trace.calls[-1].path)
    return trace.called.count(path) == 1 and trace.called.index(path) > last
