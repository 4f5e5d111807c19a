"""How a text becomes an embedding, from the files of sentence-transformers.

`modules.json` lists the modules; each has a folder with its configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skynet.checkpoint.sentence_modules import has_modules, modules_of, read_object, refused
from skynet.errors import CheckpointError

EMBEDDING = "embedding.json"
PROMPTS = "config_sentence_transformers.json"
# In the order in which the module joins them.
POOLINGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "sqrt",
    "weightedmean_tokens": "weighted",
    "lasttoken": "last",
}
MAX_PROMPTS, MAX_PROMPT_CHARACTERS = 256, 2**16
# The settings of the module that holds the model; which name it has depends on the model's age.
TEXT_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SHORT = {
    name.removesuffix("_tokens").removesuffix("_token"): ours for name, ours in POOLINGS.items()
}


def embedding_json(path: Path, model_max_length: int | None = None) -> bytes | None:
    """{"pooling": "mean", "normalize": true} of a model directory; None without modules.json.

    {"refused": "Asym"} names an unsupported module; the model's other tasks work.
    {"max_tokens": 256}: longer texts are cut. {"do_lower_case": true}: texts are lower-cased.
    {"prompts": {"query": "query: "}}: texts to put before a text, by name;
    {"default_prompt_name": "query"}; {"include_prompt": false}: pooling leaves its tokens out.

    model_max_length: of the tokenizer; the limit if the model's own files set none.

    Raises:
        CheckpointError: a file is not JSON.
    """
    if not has_modules(path):
        return None
    embedding: dict[str, Any] = {"normalize": False}
    modules = modules_of(path)
    for kind, name in modules:
        folder = path / name
        if kind == "Pooling":
            embedding.update(_pooling(read_object(folder / "config.json")))
        elif kind == "Normalize":
            embedding["normalize"] = True
        elif kind == "Transformer":
            embedding.update(_text_settings(folder, path, model_max_length))
    if (why := refused(path, modules)) is not None:
        embedding["refused"] = why
    embedding.update(_prompts(path / PROMPTS))
    return json.dumps(embedding, sort_keys=True).encode()


def _prompts(file: Path) -> dict[str, Any]:
    """The prompts before texts, by name, and the name of the default one, if there is any."""
    config = read_object(file) if file.is_file() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    sizes = [len(part) for item in prompts.items() for part in item if isinstance(part, str)]
    is_texts = len(sizes) == 2 * len(prompts) and len(prompts) <= MAX_PROMPTS
    if not is_texts or sum(sizes) > MAX_PROMPT_CHARACTERS:
        raise CheckpointError(f"{file}: prompts is not a table of texts; download it again")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{file}: default_prompt_name {default!r:.40} is none of its prompts")
    given = {"prompts": prompts, "default_prompt_name": default}
    return {name: value for name, value in given.items() if value}


def _text_settings(folder: Path, model: Path, model_max_length: int | None) -> dict[str, Any]:
    """How a text is cut and lower-cased, as by the module Transformer of sentence-transformers."""
    file = next((folder / name for name in TEXT_CONFIGS if (folder / name).is_file()), None)
    config = {} if file is None else read_object(file)
    settings: dict[str, Any] = {"do_lower_case": True} if config.get("do_lower_case") else {}
    limit = config.get("max_seq_length")
    if limit is None:
        config = read_object(model / "config.json") if (model / "config.json").is_file() else {}
        positions = config.get("max_position_embeddings")
        known = [number for number in (positions, model_max_length) if number and number > 0]
        limit = min(known, default=None)
    if limit is None:
        return settings
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise CheckpointError(f"{file or model}: max_seq_length {limit!r}: expected a number >= 1")
    return {**settings, "max_tokens": limit}


def _pooling(config: Any) -> dict[str, Any]:
    given = config.get("pooling_mode")
    if given is not None:
        modes, known = [given] if isinstance(given, str) else list(given), SHORT
    else:
        prefix = "pooling_mode_"
        modes = [n.removeprefix(prefix) for n, on in config.items() if on and n.startswith(prefix)]
        known = POOLINGS
    unknown = [str(mode) for mode in modes if mode not in known]
    if unknown or not modes:
        return {"refused": f"pooling by {' and '.join(unknown) or 'nothing'}"}
    pooling = "+".join(ours for theirs, ours in known.items() if theirs in modes)
    without = {} if config.get("include_prompt", True) else {"include_prompt": False}
    return {"pooling": pooling, **without}
