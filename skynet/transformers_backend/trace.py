"""What Transformers' model does, seen on a run without numbers: every tensor is only a shape.

Which modules are called, in what order; which heads come to the attention function, and which keys
the mask lets a token see. Knows nothing of plans.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from skynet.architecture.config import Config
from skynet.errors import UnsupportedModel
from skynet.transformers_backend.skeleton import build, quiet

ATTENTION = "skynet_trace"
NUM_TOKENS = 3
# Arguments of the attention function that change nothing about the result, whatever they are.
IGNORED = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "sliding_window",  # the mask tells
    "dropout",  # nothing is dropped outside of training
    "layer_idx",
    "cache_position",
}
HONOURED = {"scaling", "softcap"}


def unsupported_arguments(given: Mapping[str, Any]) -> list[str]:
    """Arguments that a module gives the attention function, and that ours does not take."""
    return [
        name
        for name, value in given.items()
        if value is not None
        and name not in IGNORED | HONOURED
        and not (name == "is_causal" and value is True)
    ]


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function, made by the module at `path`."""

    path: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None


@dataclass
class Trace:
    """A model, and what was seen of it. `called` has the paths of modules in order."""

    model: Any
    model_type: str
    paths: dict[int, str]  # of modules, by identity
    calls: list[AttentionCall] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)  # the way to the module that runs
    outputs: dict[str, str] = field(default_factory=dict)  # the type of what a module returned

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.called)

    def attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        given: dict[str, Any],
    ) -> torch.Tensor:
        """Write a call down; raises UnsupportedModel if it asks for what is not computed."""
        path = self.paths[id(module)]
        unknown = unsupported_arguments(given)
        if unknown:
            raise self.refusal(path, f"gives the attention function {unknown}, not computed here")
        self.calls.append(
            AttentionCall(
                path=path,
                num_heads=query.shape[1],
                num_kv_heads=key.shape[1],
                head_dim=query.shape[3],
                value_dim=value.shape[3],
                window=self._window(path, mask),
            )
        )
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])

    def _window(self, path: str, mask: torch.Tensor | None) -> int | None:
        sees: Callable[..., torch.Tensor] | None = getattr(mask, "skynet_sees", None)
        if mask is None or sees is None:
            raise self.refusal(path, "makes an attention mask of its own, or none")
        window: int | None = getattr(mask, "skynet_window", None)
        if not _is_window(sees, window):
            raise self.refusal(path, "has an attention mask that is neither causal nor a window")
        return window

    def stand_in(self, path: str) -> None:
        """Let the experts at `path` give hidden states unseen: numbers choose them, and here are
        none."""
        self.model.get_submodule(path).forward = _shaped

    def run(self) -> None:
        """Run the model, once.

        Raises:
            UnsupportedModel: it cannot be run on shapes, or its attention is none of ours.
        """
        try:
            with torch.device("meta"), torch.no_grad(), quiet():
                out = self.model(
                    input_ids=torch.zeros((1, NUM_TOKENS), dtype=torch.long),
                    position_ids=torch.arange(NUM_TOKENS)[None],
                    attention_mask=torch.ones((1, NUM_TOKENS)),
                    use_cache=False,
                )
        except UnsupportedModel:
            raise
        except Exception as error:  # each model has errors of its own
            reason = re.sub(r"\s+", " ", str(error))[:200]
            where = self.running[-1]
            raise self.refusal(where, f"cannot be run on shapes alone: {reason}") from error
        if out.logits.shape[:2] != (1, NUM_TOKENS):
            shape = list(out.logits.shape)
            raise self.refusal("", f"gives logits of shape {shape} for {NUM_TOKENS} tokens")

    def refusal(self, path: str, why: str) -> UnsupportedModel:
        """Names the model, the module at `path` and its class, and why it is not run."""
        kind = type(self.model.get_submodule(path)).__name__
        where = f"{path} ({kind})" if path else kind
        return UnsupportedModel(f"model_type {self.model_type!r}: {where} {why}")


def prepare(config: Config) -> Trace:
    """The trace of a model that has not run yet.

    Raises:
        UnsupportedModel: Transformers cannot make it.
    """
    _register()
    # In bfloat16: what is float32 all the same stays so.
    model = build(config, ATTENTION, torch.bfloat16, buffers=False)
    paths = {id(module): path for path, module in model.named_modules()}
    found = Trace(model, str(config.get("model_type")), paths)
    for path, module in model.named_modules():
        module.skynet_trace = found
        module.register_forward_pre_hook(_begin(found, path))
        module.register_forward_hook(_end(found, path))
    return found


def _shaped(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def _begin(found: Trace, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any) -> None:
        found.running.append(path)

    return hook


def _end(found: Trace, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        found.running.pop()
        found.called.append(path)
        found.outputs[path] = type(output).__name__

    return hook


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    found: Trace = module.skynet_trace  # type: ignore[assignment]
    return found.attention(module, query, key, value, attention_mask, given), None


def _mask(*_: Any, **given: Any) -> torch.Tensor:
    """A mask that says what it is: only this very tensor does, none that is made of it."""
    mask = torch.ones((1, 1, NUM_TOKENS, NUM_TOKENS), dtype=torch.bool, device="meta")
    mask.skynet_sees = given["mask_function"]  # type: ignore[attr-defined]
    mask.skynet_window = given.get("local_size")  # type: ignore[attr-defined]
    return mask


def _is_window(sees: Callable[..., torch.Tensor], window: int | None) -> bool:
    """Does a token see those up to itself, or the last `window` of them, and no others?"""
    with torch.device("cpu"):
        query = torch.tensor(1000 if window is None else 2 * window + 3)
        keys = torch.arange(int(query) + 3)
        expected = keys <= query
        if window is not None:
            expected &= keys > query - window
        zero = torch.tensor(0)
        try:
            seen = sees(zero, zero, query, keys).expand(keys.shape)
            return bool((seen == expected).all())
        except (RuntimeError, NotImplementedError):  # it needs more than positions
            return False
