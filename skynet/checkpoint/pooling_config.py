"""How a text's embedding is made of its hidden states: the files of sentence-transformers.

`modules.json` lists the steps, each with a configuration in a folder of its own.
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
    """{"pooling": "mean", "normalize": true} of a model directory; None if it does not say.

    What is not computed is named instead: {"refused": "Dense"}. The model is usable for all else.

    Raises:
        CheckpointError: a file that is no JSON.
    """
    if not (path / MODULES).is_file():
        return None
    modules = _read(path / MODULES)
    found: dict[str, Any] = {"normalize": False}
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found.update(_pooling(_read(path / str(module["path"]) / "config.json")))
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            found["refused"] = kind
    if "pooling" not in found and "refused" not in found:
        found["refused"] = "modules without Pooling"
    return json.dumps(found, sort_keys=True).encode()


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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; download it again") from error
