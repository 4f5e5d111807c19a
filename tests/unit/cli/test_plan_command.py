"""`skynet plan`: any model by its config.json alone, as a table and as JSON; errors that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skynet.bench import distribution
from skynet.bench.distribution import Distribution
from skynet.cli import main
from skynet.errors import SkynetError
from skynet.planning.timing import Costs
from skynet.worker import layer_speed, speed
from skynet.worker.speed import Speeds

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**TEXT, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 2048, "vocab_size": 500},
    "mixtral": {
        **TEXT,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **TEXT,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "bert": {**TEXT, "type_vocab_size": 2, "architectures": ["BertModel"]},
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "vocab_size": 500,
    },
    "olmo": {**TEXT, "num_key_value_heads": 4},  # without a family file
}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speeds are known."""
    monkeypatch.setattr(
        speed, "measure_speeds", lambda device, threads, min_s: Speeds(1e10, 1e10, 2e10, threads)
    )
    monkeypatch.setattr(layer_speed, "measure_layer", lambda speeds, min_s: (4e-4, 2e-5))
    monkeypatch.setattr(
        distribution, "measure_distribution", lambda layer_s: Distribution(1e-5, 3e-4, 5e-3, 7e-3)
    )


def directory(root: Path, model_type: str, **fields: Any) -> str:
    """A model directory that holds a config.json only."""
    path = root / model_type
    path.mkdir()
    config = {**CONFIGS[model_type], "model_type": model_type, **fields}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["plan", *words])


def planned(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_config_is_enough(tmp_path: Path, model_type: str) -> None:
    # Given a directory without weights / When its shapes are predicted
    shown = planned(directory(tmp_path, model_type), "--workers", "1,2,4", "--memory-gib", "8")
    # Then each shape of so many workers has memory and times
    assert {row["shape"] for row in shown["shapes"]} == {"1x1", "1x2", "2x1", "1x4", "2x2", "4x1"}
    for row in shown["shapes"]:
        assert row["problem"] == ""
        assert row["workers"] == row["stages"] * row["shards"]
        assert 0 < row["weight_bytes"] < row["memory_bytes"]
        assert row["first_token_s"] > 0
        assert row["load_s"] > 0
        assert set(row["token_s"]) == {"products", "sums", "chords", "orchestrator"}
        assert (row["sums"] > 0) == (row["shards"] > 1)
        generates = model_type != "bert"
        assert (row["tokens_per_s"] > 0) == (row["tokens_per_s_16"] > 0) == generates
    assert shown["recommended"]["shape"] in {row["shape"] for row in shown["shapes"]}
    assert shown["redis_bytes"] > 0
    assert shown["assumed"]["worker"]["speed"] == 1e10


def test_weights_take_the_bytes_of_their_dtype(tmp_path: Path) -> None:
    # Given a model in three dtypes / When its shapes are predicted, computed in float32
    sizes = {}
    for dtype in ("float32", "bfloat16", "float16"):
        (tmp_path / dtype).mkdir()
        path = directory(tmp_path / dtype, "llama", dtype=dtype)
        shown = planned(path, "--workers", "1", "--memory-gib", "8", "--quick")
        sizes[dtype] = (shown["shapes"][0]["weight_bytes"], shown["redis_bytes"])
        # And in bfloat16 every one can be computed
        planned(path, "--workers", "1", "--memory-gib", "8", "--quick", "--dtype", "bfloat16")
    # Then those of 16 bits take about half of the memory
    assert sizes["float16"] == sizes["bfloat16"]
    assert 0.5 < sizes["float16"][0] / sizes["float32"][0] < 0.51


def test_weights_are_kept_as_the_config_says(tmp_path: Path) -> None:
    # Given a checkpoint in bfloat16, and one that does not say
    model = directory(tmp_path, "llama")
    # Then its weights are bfloat16, or as asked
    assert planned(model)["weights"] == "bfloat16"
    assert planned(directory(tmp_path, "gpt2"))["weights"] == "float32"
    sizes = [
        planned(model, "--workers", "1", "--weights", kept)["shapes"][0]["weight_bytes"]
        for kept in ("bf16", "q8", "q4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 2.5


def test_the_network_and_the_machine_can_be_given(tmp_path: Path) -> None:
    model = directory(tmp_path, "llama")

    def shape(name: str, *words: str) -> dict[str, Any]:
        shapes = planned(model, "--workers", "4", *words)["shapes"]
        return next(row for row in shapes if row["shape"] == name)

    # Given a slow network / Then a token waits for its round trips
    near, far = shape("1x4", "--rtt-ms", "0"), shape("1x4", "--rtt-ms", "10")
    trips = far["sums"] + 2 + 1
    waited = sum(far["token_s"].values()) - sum(near["token_s"].values())
    assert waited == pytest.approx(trips * 0.01)
    # And direct links, a thin wire, cores and slots count
    assert shape("1x4", "--exchange", "direct")["token_s"]["sums"] < shape("1x4")["token_s"]["sums"]
    assert shape("1x4", "--bandwidth-mbit", "1")["load_s"] > shape("1x4")["load_s"]
    one, eight = shape("1x4", "--cores", "1"), shape("1x4", "--cores", "8")
    assert eight["token_s"]["products"] < one["token_s"]["products"]
    few, many = shape("1x4", "--slots", "1"), shape("1x4", "--slots", "32")
    assert many["kv_bytes"] == 32 * few["kv_bytes"]


def test_the_table_recommends_a_shape_and_says_why(tmp_path: Path) -> None:
    # Given a model / When its shapes are shown
    shown = run(directory(tmp_path, "llama"), "--workers", "1,2,8", "--rtt-ms", "5")
    # Then there is a row for each, the impossible ones with the reason, and a recommendation
    assert shown.exit_code == 0, shown.output
    assert "Recommended: 1x1: " in shown.output
    assert "skynet split MODEL --stages 1 --shards 1" in shown.output
    assert "More are slower from 2 workers on: " in shown.output
    assert "1x8 (8 workers): 8 shards for 4 query heads" in shown.output
    assert "8x1 (8 workers): 8 stages for 4 layers" in shown.output


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    shown = run(directory(tmp_path, "llama"), "--memory-gib", "0.1")
    assert shown.exit_code == 0
    assert "would need" in shown.output
    assert "has 102 MiB" in shown.output
    assert "No shape fits" in shown.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "two"], "'two' is no list of numbers from 1 to 256"),
        (["--workers", "0"], "'0' is no list of numbers"),
        (["--workers", "1,999"], "'1,999' is no list of numbers"),
        (["--weights", "q3"], "'q3' is not one of"),
        (["--rtt-ms", "-1"], "-1"),
        (["--memory-gib", "0"], "0"),
        (["--cores", "0"], "0"),
        (["--slot-tokens", "100000"], "slot_tokens=100000: llama has 2048 positions"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, words: list[str], told: str) -> None:
    result = run(directory(tmp_path, "llama"), *words)
    assert result.exit_code != 0
    assert told in result.output


def test_a_missing_model_says_what_to_name(tmp_path: Path) -> None:
    assert "config.json does not exist" in run(str(tmp_path)).output
    assert "name a directory with a config.json" in run(str(tmp_path / "absent.gguf")).output


def test_the_demo_model_needs_no_conversion(
    demo_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the demo model's file / When it is predicted
    shown = planned("smollm2", "--workers", "1")
    # Then Redis needs its tensors' bytes, as near as the layout of most of them tells
    stored = sum(tensor.num_bytes for tensor in demo_checkpoint.tensors.values())
    assert shown["redis_bytes"] == pytest.approx(stored, rel=0.1)
    assert shown["weights"] in ("q4", "q8")


def test_chords_and_sums_are_those_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine on which they are measured
    model, sums = directory(tmp_path, "llama"), [["redis", 3e-4], ["direct", 1e-5]]
    costs = planned(model)["assumed"]["costs"]
    # Then shapes are predicted by them
    assert (costs["sum_s"], costs["chord_s"], costs["step_s"]) == (sums, 5e-3, 7e-3)
    # And by default values where that is asked for, or impossible
    defaults = Costs()
    assert planned(model, "--quick")["assumed"]["costs"]["chord_s"] == defaults.chord_s

    def fail(layer_s: float) -> Distribution:
        raise SkynetError("no server is installed")

    monkeypatch.setattr(distribution, "measure_distribution", fail)
    assumed = planned(model)["assumed"]
    assert assumed["costs"]["chord_s"] == defaults.chord_s
    assert "no server is installed" in assumed["source"]
