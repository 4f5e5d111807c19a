"""How a text becomes an embedding, from the files of sentence-transformers.

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
# The settings of the module that holds the model; which name it has depends on the model's age.
TEXT_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SHORT = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}


def embedding_json(path: Path, model_max_length: int | None = None) -> bytes | None:
    """{"pooling": "mean", "normalize": true} of a model directory; None without modules.json.

    {"refused": "Dense"} names an unsupported module; the model's other tasks work.
    {"max_tokens": 256}: longer texts are cut. {"do_lower_case": true}: texts are lower-cased.

    model_max_length: of the tokenizer; the limit if the model's own files set none.

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
        elif kind == "Transformer":
            folder = path / str(module.get("path", ""))
            embedding.update(_text_settings(folder, path, model_max_length))
        else:
            embedding["refused"] = kind
    if "pooling" not in embedding and "refused" not in embedding:
        embedding["refused"] = "modules without Pooling"
    return json.dumps(embedding, sort_keys=True).encode()


def _text_settings(folder: Path, model: Path, model_max_length: int | None) -> dict[str, Any]:
    """How a text is cut and lower-cased, as by the module Transformer of sentence-transformers."""
    file = next((folder / name for name in TEXT_CONFIGS if (folder / name).is_file()), None)
    config = {} if file is None else _read(file)
    settings: dict[str, Any] = {"do_lower_case": True} if config.get("do_lower_case") else {}
    limit = config.get("max_seq_length")
    if limit is None:
        config = _read(model / "config.json") if (model / "config.json").is_file() else {}
        positions = config.get("max_position_embeddings")
        known = [number for number in (positions, model_max_length) if number and number > 0]
        limit = min(known, default=None)
    if limit is None:
        return settings
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise CheckpointError(f"{file or model}: max_seq_length {limit!r}: expected a number >= 1")
    return {**settings, "max_tokens": limit}


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
