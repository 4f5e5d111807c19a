"""A trace of Transformers' model, run on meta tensors, which have a shape and no values.

It has the modules that are called, in order; the heads that the attention function is given; and
the keys that the mask lets a token see. Knows nothing of plans.
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
from skynet.reference.library import quiet
from skynet.transformers_backend.skeleton import build

ATTENTION = "skynet_trace"
NUM_TOKENS = 3
# Arguments of the attention function that do not change the result.
IGNORED = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "sliding_window",  # read from the mask
    "dropout",  # only in training
    "layer_idx",
    "cache_position",
}
SUPPORTED = {"scaling", "softcap"}


def unsupported_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the attention function's arguments that SkyNet's attention does not support."""
    return [
        name
        for name, value in arguments.items()
        if value is not None
        and name not in IGNORED | SUPPORTED
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
    """A model, and what its run recorded. `called` has the paths of modules in order."""

    model: Any
    model_type: str
    paths: dict[int, str]  # of modules, by identity
    calls: list[AttentionCall] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)  # paths of the modules on the call stack
    outputs: dict[str, str] = field(default_factory=dict)  # type of a module's output, by path

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
        arguments: dict[str, Any],
    ) -> torch.Tensor:
        """Record a call; raises UnsupportedModel if an argument is not supported."""
        path = self.paths[id(module)]
        unsupported = unsupported_arguments(arguments)
        if unsupported:
            raise self.refusal(path, f"calls attention with {unsupported}, not supported")
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
            raise self.refusal(path, "makes its attention mask itself, or none")
        window: int | None = getattr(mask, "skynet_window", None)
        if not _is_window(sees, window):
            raise self.refusal(path, "has an attention mask that is neither causal nor a window")
        return window

    def stand_in(self, path: str) -> None:
        """Skip the experts at `path`: the router's values choose them, and a trace has none."""
        self.model.get_submodule(path).forward = _shaped

    def run(self) -> None:
        """Run the model, once.

        Raises:
            UnsupportedModel: it cannot run on shapes, or its attention is not supported.
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
        except Exception as error:  # models raise errors of any class
            reason = re.sub(r"\s+", " ", str(error))[:200]
            where = self.running[-1]
            raise self.refusal(where, f"cannot be run on shapes alone: {reason}") from error
        if out.logits.shape[:2] != (1, NUM_TOKENS):
            shape = list(out.logits.shape)
            raise self.refusal("", f"gives logits of shape {shape} for {NUM_TOKENS} tokens")

    def refusal(self, path: str, why: str) -> UnsupportedModel:
        """The error that names the model, the module at `path`, its class and the reason."""
        kind = type(self.model.get_submodule(path)).__name__
        where = f"{path} ({kind})" if path else kind
        return UnsupportedModel(f"model_type {self.model_type!r}: {where} {why}")


def prepare(config: Config) -> Trace:
    """The trace of a model that has not run yet.

    Raises:
        UnsupportedModel: Transformers cannot build the model.
    """
    _register()
    # In bfloat16, which shows the parameters that stay float32 all the same.
    model = build(config, ATTENTION, torch.bfloat16, buffers=False)
    paths = {id(module): path for path, module in model.named_modules()}
    trace = Trace(model, str(config.get("model_type")), paths)
    for path, module in model.named_modules():
        module.skynet_trace = trace
        module.register_forward_pre_hook(_begin(trace, path))
        module.register_forward_hook(_end(trace, path))
    return trace


def _shaped(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def _begin(trace: Trace, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any) -> None:
        trace.running.append(path)

    return hook


def _end(trace: Trace, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        trace.running.pop()
        trace.called.append(path)
        trace.outputs[path] = type(output).__name__

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
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    trace: Trace = module.skynet_trace  # type: ignore[assignment]
    return trace.attention(module, query, key, value, attention_mask, arguments), None


def _mask(*_: Any, **arguments: Any) -> torch.Tensor:
    """A mask with its function and window as attributes, which no tensor computed from it has."""
    mask = torch.ones((1, 1, NUM_TOKENS, NUM_TOKENS), dtype=torch.bool, device="meta")
    mask.skynet_sees = arguments["mask_function"]  # type: ignore[attr-defined]
    mask.skynet_window = arguments.get("local_size")  # type: ignore[attr-defined]
    return mask


def _is_window(sees: Callable[..., torch.Tensor], window: int | None) -> bool:
    """Whether a token sees all tokens up to itself, or the last `window` of them, and no others."""
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
        except (RuntimeError, NotImplementedError):  # the mask depends on more than positions
            return False
