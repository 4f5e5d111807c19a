"""Pooling of hidden states to a text's embedding, from the files of sentence-transformers.

`modules.json` lists the modules; each has a folder with its configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skynet.errors import CheckpointError

EMBEDDING = "embedding.json"
MODULES = "modules.json"
POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "last"}
SHORT = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}


def embedding_json(path: Path) -> bytes | None:
    """{"pooling": "mean", "normalize": true} of a model directory; None without modules.json.

    {"refused": "Dense"} names an unsupported module; the model's other tasks work.

    Raises:
        CheckpointError: a file is not JSON.
    """
    if not (path / MODULES).is_file():
        return None
    modules = _read(path / MODULES)
    embedding: dict[str, Any] = {"normalize": False}
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            embedding.update(_pooling(_read(path / str(module["path"]) / "config.json")))
        elif kind == "Normalize":
            embedding["normalize"] = True
        elif kind != "Transformer":
            embedding["refused"] = kind
    if "pooling" not in embedding and "refused" not in embedding:
        embedding["refused"] = "modules without Pooling"
    return json.dumps(embedding, sort_keys=True).encode()


def _pooling(config: Any) -> dict[str, str]:
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
        known = SHORT
    else:
        prefix = "pooling_mode_"
        modes = [n.removeprefix(prefix) for n, on in config.items() if on and n.startswith(prefix)]
        known = POOLINGS
    if len(modes) == 1 and modes[0] in known:
        return {"pooling": known[modes[0]]}
    return {"refused": f"pooling by {' and '.join(modes) or 'nothing'}"}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; download it again") from error
