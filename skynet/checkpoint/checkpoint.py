"""A checkpoint on disk: config, tensors (region by region), tokenizer files, digest.

Opens a Hugging Face directory, a hub id, a GGUF file or a demo model. Never unpickles. Knows
neither model families nor the partition of tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from skynet.architecture import transformers_model
from skynet.architecture.config import ABSENT, MODULES, QUANTISED
from skynet.checkpoint.demo import DEMO_MODEL, DEMO_NAMES, demo_checkpoint_path
from skynet.checkpoint.digests import cached_digest
from skynet.checkpoint.formats.matrix import numbers, same_matrix
from skynet.checkpoint.formats.table import FIELD, is_known, quantised_matrices
from skynet.checkpoint.gguf import convert_gguf
from skynet.checkpoint.minilm import MINILM_MODEL, MINILM_NAMES, minilm_path
from skynet.checkpoint.packed_experts import PackedExperts, packed_experts
from skynet.checkpoint.quantised_source import QuantisedSource
from skynet.checkpoint.safetensors_file import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorInfo,
    read_header,
    read_region,
    same_bytes,
)
from skynet.checkpoint.sentence_modules import (
    dense_modules,
    dense_tensors,
    has_modules,
    modules_of,
)
from skynet.checkpoint.text_files import libraries, text_files
from skynet.errors import CheckpointError
from skynet.models.language_model import language_config, language_tensors
from skynet.models.registry import known_architecture, settled

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]
# Sub-folders hold other formats, and config.json files of sentence-transformers; consolidated* are
# the same weights under the vendor's names.
HUB_FILES_NOT_READ = ["*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja", "consolidated*"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
RERANKER = re.compile(r"qwen3-reranker", re.IGNORECASE)
DIGEST_CHUNK = 8 * 2**20
# Version of the staged content. 4: the tokenizer as Transformers loads it.
CONTENT = "checkpoint 4"


class Checkpoint:
    """One Hugging Face model directory. Holds headers, not weights."""

    def __init__(self, path: Path, name: str, cache_dir: Path) -> None:
        self.path = path
        self.name = name
        self._cache_dir = cache_dir
        whole = read_config(path)
        config = language_config(whole)
        # Whether it takes more than text, and only its language model is read.
        self.is_inside = config != whole
        self._stored: dict[str, TensorInfo] = _read_tensors(path)
        if self.is_inside:
            # Both configs may say that the head is the embedding, or neither: the file decides.
            config["tie_word_embeddings"] = True
            names = language_tensors(self._stored)
            self._stored = {
                name: replace(self._stored[stored], stored_as=stored)
                for name, stored in names.items()
            }
        if has_modules(path):
            dense = dense_modules(path)
            self._stored |= dense_tensors(path, dense)
            config[MODULES] = {"dense": [module.field for module in dense], "head": True}
        matrices = quantised_matrices(config, self._stored)
        if is_known(config):
            del config[FIELD]  # the rest of the program knows layouts, not formats
        arch = known_architecture(config)
        # The experts of tensors that have all of them: each is a tensor, as in other files.
        self.packed = (
            PackedExperts() if arch is None else packed_experts(arch, self._stored, matrices)
        )
        self.quantised: dict[str, QuantisedSource] = {**matrices, **self.packed.quantised}
        # Of a quantised matrix there are its shape and its layout, but no bytes in one place.
        self.tensors: dict[str, TensorInfo] = self._stored | self.packed.infos()
        self.tensors |= {
            name: TensorInfo(matrix.shape, matrix.layout, path, 0, 0)
            for name, matrix in self.quantised.items()
        }
        self.config: dict[str, Any] = dict(settled(config, self.tensors, self._same))

    def describe(self, description: dict[str, Any]) -> None:
        """Add the description of a model on the Transformers backend to the config."""
        described = {**self.config, transformers_model.KEY: description}
        self.config = dict(settled(described, self.tensors, self._same))

    @property
    def original(self) -> Checkpoint:
        """This checkpoint: see `ModelSource`."""
        return self

    def _same(self, one: str, other: str) -> bool:
        if one in self.quantised and other in self.quantised:
            return same_matrix(self.quantised[one], self.quantised[other])
        return same_bytes(self.tensors[one], self.tensors[other])

    def read(self, name: str, axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        """`[start, stop)` of a tensor along `axis`, contiguous; bfloat16 as its uint16 bits.

        Of a quantised matrix, its numbers in float32; `quantised` has its codes and scales.
        Only the region is held in memory.

        Raises:
            CheckpointError: an unknown tensor, a region outside of it, or a failed read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}")
        if name in self.quantised:
            return numbers(self.quantised[name], axis, start, stop)
        if name in self.packed.numbers:
            return self.packed.numbers[name].read(axis, start, stop)
        return read_region(name, info, axis, start, stop)

    def read_whole(self, name: str) -> npt.NDArray[Any]:
        """All of a tensor, as `read` gives it; of experts that are packed and quantised, the axes
        are those of a file of numbers.
        """
        array = self.read(name, 0, 0, (*self.tensors[name].shape, 1)[0])
        return self.packed.in_axes_of_numbers(name, array)

    def text_files(self) -> dict[str, bytes]:
        """The files of `skynet.tokenizer.text.Text`; see `skynet.checkpoint.text_files`."""
        return dict(self._text_files)

    @cached_property
    def _text_files(self) -> dict[str, bytes]:
        return text_files(self.path, self._cache_dir, reranks=self._reranks)

    @property
    def _reranks(self) -> bool:
        """Whether this is a decoder that ranks pairs of texts; only its name says so."""
        return self.config.get("model_type") == "qwen3" and bool(RERANKER.search(self.name))

    def digest(self, progress: Callable[[int], None] | None = None) -> str:
        """sha256 hex of the content: config, tensors by name, text files.

        Independent of the directory's path and of the tensors' distribution over files. Cached in
        the cache directory until a file changes. `progress` is called with the length of every
        chunk of bytes that is hashed.
        """
        files = [file for file in self.path.iterdir() if file.is_file()]
        for name in ("config.json", SINGLE_FILE):  # of the modules of sentence-transformers
            files += self.path.glob(f"*/{name}")
        # The description is in no file, but a part of the content.
        description = self.config.get(transformers_model.KEY)
        suffix = "" if description is None else f" {json.dumps(description)}"
        kind = f"{CONTENT} {libraries()} {self._reranks}{suffix}"
        return cached_digest(kind, files, self._cache_dir, lambda: self._compute_digest(progress))

    def _compute_digest(self, progress: Callable[[int], None] | None) -> str:
        digest = hashlib.sha256(CONTENT.encode())
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        for name, content in sorted(self._text_files.items()):
            digest.update(f"\0{name}\0{len(content)}\0".encode())
            digest.update(content)
        for name, info in sorted(self._stored.items()):
            digest.update(f"\0{name}\0{info.dtype}\0{list(info.shape)}\0".encode())
            _hash_tensor(digest, info, progress)
        return digest.hexdigest()


def open_checkpoint(model: str, cache_dir: Path) -> Checkpoint:
    """The checkpoint that `model` names.

    Args:
        model: a Hugging Face directory, a `.gguf` file, a hub id such as "Qwen/Qwen3-0.6B",
            "demo", or "minilm".
        cache_dir: for conversions and digests.

    Raises:
        CheckpointError: missing, incomplete or unreadable; names the file and what to do.
        UnsupportedModel: quantised in a way that is not supported; names the setting.
    """
    if model.lower() in DEMO_NAMES:
        return Checkpoint(convert_gguf(demo_checkpoint_path(), cache_dir), DEMO_MODEL, cache_dir)
    if model.lower() in MINILM_NAMES:
        return Checkpoint(minilm_path(cache_dir), MINILM_MODEL, cache_dir)
    path = Path(model).expanduser()
    if path.is_dir():
        return Checkpoint(path, path.resolve().name, cache_dir)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(
                f"{path} is a file, but not a .gguf file; name the directory that holds the model"
            )
        return Checkpoint(convert_gguf(path, cache_dir), path.stem, cache_dir)
    if path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(model):
        raise CheckpointError(f"{path} does not exist; name a model directory or a .gguf file")
    return Checkpoint(_download(model), model, cache_dir)


def _download(hub_id: str) -> Path:
    """The local snapshot of a hub model; downloads missing files."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(hub_id, allow_patterns=HUB_FILES, ignore_patterns=HUB_FILES_NOT_READ)
        )
        folders = [folder for kind, folder in modules_of(path) if kind == "Dense"]
        if folders:
            weights = [f"{folder}/{SINGLE_FILE}" for folder in folders]
            snapshot_download(hub_id, allow_patterns=weights)
        return path
    except Exception as error:  # errors of the hub client's transport included
        raise unreachable(hub_id, error) from error


def unreachable(hub_id: str, error: Exception) -> CheckpointError:
    """The error for a hub model that is not on this machine and cannot be downloaded."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{hub_id!r} is neither a directory here nor in the Hugging Face cache, and cannot be "
        f"downloaded ({reason}); check the name, the network and, for a gated model, HF_TOKEN, "
        "or copy the model's files to this machine and name their directory"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The parsed config.json of a model directory."""
    if (path / "config.json").is_file():
        config = _read_json(path / "config.json")
        for name in (transformers_model.KEY, ABSENT, MODULES, QUANTISED):  # set by SkyNet only
            config.pop(name, None)
        return config
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    hint = (
        f"to use {gguf_files[0]}, name that file"
        if gguf_files
        else "name a directory in Hugging Face's layout (config.json, *.safetensors, tokenizer)"
    )
    raise CheckpointError(f"{path / 'config.json'} does not exist; {hint}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected an object")
    return content


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    if (path / SINGLE_FILE).is_file():
        return read_header(path / SINGLE_FILE)
    if (path / INDEX_FILE).is_file():
        return _read_sharded(path)
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{path} holds {', '.join(others[:3])}, but neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "download the missing file"
        )
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{path / pickled[0]} is a pickle, which can run code when it is read and is never "
            "opened here; convert it where you trust it: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(...) writes safetensors"
        )
    raise CheckpointError(f"{path} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_sharded(path: Path) -> dict[str, TensorInfo]:
    """All tensors of the files that the index names, as Transformers reads them.

    A tensor that the index leaves out is read, and one that is in several files is the last one's.
    """
    index = path / INDEX_FILE
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index}: {name} is in {file_name!r}, which is not a file name")
    tensors: dict[str, TensorInfo] = {}
    for file_name in sorted(set(weight_map.values())):
        if not (path / file_name).is_file():
            raise CheckpointError(
                f"{path / file_name} is missing, though {INDEX_FILE} names it; download it"
            )
        tensors |= read_header(path / file_name)
    for name, file_name in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{path / file_name} does not hold {name}, which {INDEX_FILE} places there; "
                "download both again"
            )
    return tensors


def _hash_tensor(
    digest: hashlib._Hash, info: TensorInfo, progress: Callable[[int], None] | None
) -> None:
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        left = info.num_bytes
        while left:
            chunk = stream.read(min(DIGEST_CHUNK, left))
            if not chunk:
                raise CheckpointError(f"{info.file} became shorter while it was read")
            digest.update(chunk)
            left -= len(chunk)
            if progress is not None:
                progress(len(chunk))
