"""The command line: help that tells, and errors of one line instead of tracebacks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from checkpoints import make_tiny
from click.testing import CliRunner, Result

from skynet import __version__, cli
from skynet.checkpoint.checkpoint import Checkpoint
from skynet.cli import terminal
from skynet.cli.options import MAX_PROMPT_BYTES, chosen, interruptible
from skynet.local.processes import WorkerProcesses
from skynet.local.server import EmbeddedServer
from skynet.request.completion import Completion
from skynet.request.option_table import ARGUMENTS, OPTIONS
from skynet.request.record import Token
from skynet.settings import Settings, settings

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
}


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command reads the environment as a new process would."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SKYNET_{name.upper()}", raising=False)
    settings.cache_clear()


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a server or a worker is started."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(EmbeddedServer, "start", refuse)
    monkeypatch.setattr(WorkerProcesses, "prepare", refuse)
    monkeypatch.setattr(WorkerProcesses, "start", refuse)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A llama without weights: enough to be opened and refused."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def skynet(*words: str, **environment: str) -> Result:
    """Run a command in this process; it may raise nothing but SystemExit."""
    result = CliRunner().invoke(cli.main, words, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def refused(result: Result, error: str, *messages: str) -> None:
    """One line, on stderr, that names the error and what matters, and exit code 1."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"{error}: ")
    assert result.stderr.count("\n") == 1
    for text in messages:
        assert text in result.stderr


@pytest.mark.parametrize("name", cli.main.commands)
def test_every_command_tells_what_it_does_and_what_its_options_are(name: str) -> None:
    # When
    result = skynet(name, "--help")
    # Then
    assert result.exit_code == 0
    command = cli.main.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert parameter.opts[0] in result.stdout
        else:
            assert (parameter.name or "").upper() in result.stdout


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_first_help_names_all_commands(flag: str) -> None:
    result = skynet(flag)
    assert result.exit_code == 0
    for name in cli.main.commands:
        assert f"\n  {name} " in result.stdout


def test_version() -> None:
    assert __version__ in skynet("--version").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "hello", "--stages", "0"),
        ("run", "hello", "--shards", "-1"),
        ("run", "hello", "--dtype", "int4"),
        ("up", "--port", "70000"),
        ("split",),
        ("split", "smollm2", "--slots", "0"),
        ("generate", "hello", "--nope"),
        ("generate", "hello", "--priority", "10"),
        ("generate", "hello", "--n", "17"),
        ("generate", "hello", "--logprobs", "21"),
        ("up", "--spares", "-1"),
        ("models", "remove"),
        ("requests", "cancel"),
        ("requests", "cancel", "3f2a", "--all"),
        ("requests", "--limit", "0"),
        ("run", "hello", "--n", "17"),
        ("ask", "hello"),
    ],
)
def test_wrong_usage_is_told_with_the_usage(words: tuple[str, ...]) -> None:
    result = skynet(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("words", "error", "messages"),
    [
        (("", "--stages", "1"), "BadRequest", ["prompt", "empty"]),
        (("hello", "--temperature", "nan"), "BadRequest", ["temperature", "nan"]),
        (("hello", "--temperature", "-1"), "BadRequest", ["temperature", "-1"]),
        (("hello", "--top-p", "0"), "BadRequest", ["top_p", "0"]),
        (("hello", "--max-tokens", "0"), "BadRequest", ["max_tokens", "0"]),
        (("hello", "--stop", ""), "BadRequest", ["stop"]),
        (("hello", "--repetition-penalty", "0"), "BadRequest", ["repetition_penalty", "0"]),
        (("hello", "--bad-word", ""), "BadRequest", ["bad_words"]),
        (("hello", "--timeout", "0"), "BadRequest", ["timeout", "0"]),
        (("hello", "--sample", "--temperature", "0"), "BadRequest", ["do_sample", "temperature"]),
        (("hello", "--model", "/nowhere"), "CheckpointError", ["/nowhere"]),
        (("hello", "--model", "nowhere.gguf"), "CheckpointError", ["nowhere.gguf"]),
    ],
)
def test_run_refuses_before_anything_is_started(
    words: tuple[str, ...], error: str, messages: list[str]
) -> None:
    refused(skynet("run", *words), error, *messages)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("command", ["run hello --model", "up --model", "split"])
def test_an_unknown_model_type_is_refused_with_those_known(command: str, checkpoint: Path) -> None:
    # Given
    from skynet.models.registry import KNOWN

    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mamba"}))
    write_weights(checkpoint)
    # When
    result = skynet(*command.split(), str(checkpoint))
    # Then
    refused(result, "UnsupportedModel", "'mamba'", *KNOWN)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("command", ["run hello --model", "up --model", "split"])
def test_a_checkpoint_without_weights_is_refused(command: str, checkpoint: Path) -> None:
    result = skynet(*command.split(), str(checkpoint))
    refused(result, "CheckpointError", str(checkpoint), "model.safetensors")


@pytest.mark.usefixtures("nothing_starts")
def test_a_truncated_checkpoint_is_refused(checkpoint: Path) -> None:
    # Given
    write_weights(checkpoint)
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    # Then
    refused(skynet("split", str(checkpoint)), "CheckpointError", "model.safetensors")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["--stages", "1", "--shards", "10"], "10 shards for 9 query heads"),
        (["--stages", "31", "--shards", "1"], "31 stages for 30 layers"),
        (["--slot-tokens", "1000000"], "slot_tokens=1000000"),
        (["--dtype", "bfloat16", "--kv-dtype", "float32"], "kv_dtype 'float32' is wider"),
    ],
)
@pytest.mark.parametrize("command", ["run hello", "up", "split smollm2"])
def test_a_shape_that_does_not_fit_is_refused_with_the_numbers(
    command: str, shape: list[str], message: str, demo_checkpoint: Checkpoint
) -> None:
    # Given a model of 9 query heads and 30 layers
    assert demo_checkpoint.config["num_attention_heads"] == 9
    # Then
    refused(skynet(*command.split(), *shape), "PlanError", message)


UNREACHABLE = [
    ("unix:///nonexistent", "unix:///nonexistent"),
    ("redis://:secret@127.0.0.1:1/0", "redis://:***@127.0.0.1:1/0"),
    ("redis://user:secret@127.0.0.1:1", "redis://user:***@127.0.0.1:1"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("url", "shown"), UNREACHABLE)
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "hello"),
        ("status",),
        ("status", "--json"),
        ("rebalance",),
        ("requests",),
        ("requests", "cancel", "--all"),
        ("models",),
        ("models", "verify"),
        ("models", "remove", "ab"),
    ],
)
def test_no_redis_is_told_with_its_url_but_not_its_password(
    command: tuple[str, ...], url: str, shown: str
) -> None:
    result = skynet(*command, SKYNET_REDIS_URL=url)
    refused(result, "ClusterUnreachable", f"no answer from Redis at {shown}: ", "SKYNET_REDIS_URL")
    assert "secret" not in result.output


@pytest.mark.timeout(60)
def test_split_needs_slots_for_the_beams_that_the_model_searches_with(tmp_path: Path) -> None:
    # Given a model whose requests have five beams unless they say otherwise
    path = make_tiny(tmp_path).path
    (path / "generation_config.json").write_text(json.dumps({"num_beams": 5}))
    # When / Then
    result = skynet("split", str(path), "--slots", "4")
    refused(result, "PlanError", "generation_config.json sets num_beams 5")


@pytest.mark.parametrize(("url", "shown"), UNREACHABLE)
def test_split_needs_redis(url: str, shown: str, demo_checkpoint: Checkpoint) -> None:
    result = skynet("split", str(demo_checkpoint.path), SKYNET_REDIS_URL=url)
    refused(result, "ClusterUnreachable", shown)
    assert "secret" not in result.output


@pytest.mark.timeout(60)
def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    # Given
    assert Settings.model_fields["connect_timeout_s"].default < 5
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        # When
        result = skynet("generate", "hello", SKYNET_REDIS_URL=url, SKYNET_CONNECT_TIMEOUT_S="0.2")
    # Then
    refused(result, "ClusterUnreachable", url)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SKYNET_THREADS", "zero"),
        ("SKYNET_LEASE_S", "-1"),
        ("SKYNET_LOG_LEVEL", "LOUD"),
        ("SKYNET_REDIS_URL", "http://user:secret@host"),
        ("SKYNET_EXCHANGE_URLS", '["ftp://user:secret@host"]'),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str) -> None:
    result = skynet("status", **{variable: value})
    refused(result, "ConfigurationError", variable)
    assert "secret" not in result.output


class Answered:
    """A generation whose answer is there."""

    id = "some-request"

    def __init__(self, text: str, logprobs: list[dict[str, Any]]) -> None:
        timings = {"first_token_s": 0.5, "decode_tokens_per_s": 3.0}
        self.completion = Completion(
            text, [5, 6], 90, "length", timings, logprobs, cached_tokens=80
        )
        self.completion.prompt_logprobs.extend(
            [None, {"logprob": -1.5, "top": []}, {"logprob": -0.5, "top": []}]
        )

    def tokens(self) -> list[Token]:
        return [Token(0, 5, self.completion.text[:1]), Token(1, 6, self.completion.text[1:])]

    def get(self) -> Completion:
        return self.completion


class Asked:
    """A client that answers at once, and records the requests."""

    url = "unix:///nonexistent"
    texts: ClassVar = {5: " river", 6: "", 9: "\n", 7: "\ufffd"}

    def __init__(self) -> None:
        self.prompt = ""
        self.options: dict[str, Any] = {}

    def spell(self, request_id: str, ids: list[int]) -> dict[int, str]:
        assert request_id == Answered.id
        return {token_id: self.texts[token_id] for token_id in ids}

    def submit_prompt(self, prompt: str, n: int, **options: Any) -> list[Answered]:
        self.prompt, self.options = prompt, options
        logprobs = [
            {"logprob": -0.5, "top": [[5, -0.5], [9, -2.25], [7, -3.0]]},
            {"logprob": -1.0, "top": []},
        ]
        return [Answered(f"text {number}", logprobs) for number in range(n)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    client = Asked()
    monkeypatch.setattr("skynet.cli.cluster.client_of_settings", lambda: client)
    return client


def test_generate_prints_answers_and_log_probabilities(asked: Asked) -> None:
    # When two answers are asked for with options
    words = ["--n", "2", "--logprobs", "2", "--bad-word", "no", "--bad-word", "never", "--sample"]
    words += ["--repetition-penalty", "1.5", "--frequency-penalty", "-0.5", "--max-tokens", "-1"]
    words += ["--logit-bias", "5=-100", "--logit-bias", "6=1.5", "--prompt-logprobs", "0"]
    result = skynet("generate", "hello", *words)
    # Then the options arrive, and the answers come one after the other
    assert result.exit_code == 0
    assert asked.options == {
        "raw": False,
        "logprobs": 2,
        "bad_words": ["no", "never"],
        "do_sample": True,
        "repetition_penalty": 1.5,
        "frequency_penalty": -0.5,
        "max_tokens": -1,
        "logit_bias": {"5": -100.0, "6": 1.5},
        "prompt_logprobs": 0,
    }
    # Tokens are texts; one that the text does not distinguish is its id
    each = "' river' -0.5000 |  ' river' -0.5000  '\\n' -2.2500  token 7 -3.0000\ntoken 6 -1.0000\n"
    assert result.stdout == f"text 0\n{each}text 1\n{each}"
    assert result.stderr.count("90 prompt tokens (80 cached), 2 tokens (length)") == 2
    # The prompt is summed up
    summary = "prompt: log-probability -2.0000 of 2 tokens after the first, perplexity 2.718"
    assert result.stderr.count(summary) == 2


@pytest.mark.parametrize(
    ("given", "prompt"),
    [("one\ntwo\n", "one\ntwo"), ("a\r\n", "a"), ("é", "é"), ("a\n\n", "a\n"), ("-", "-")],
)
def test_a_prompt_is_read_from_standard_input(asked: Asked, given: str, prompt: str) -> None:
    result = CliRunner().invoke(cli.main, ["generate", "-"], input=given)
    assert (result.exit_code, asked.prompt) == (0, prompt)


@pytest.mark.usefixtures("asked", "nothing_starts")
@pytest.mark.parametrize("command", ["generate", "run"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"caf\xe9", "standard input is not UTF-8"),
        (b"x" * (MAX_PROMPT_BYTES + 1), f"more than {MAX_PROMPT_BYTES} bytes"),
    ],
    ids=["bytes", "long"],
)
def test_standard_input_that_is_no_prompt_is_refused(
    command: str, given: bytes, message: str
) -> None:
    refused(CliRunner().invoke(cli.main, [command, "-"], input=given), "BadRequest", message)


def test_run_refuses_an_empty_standard_input() -> None:
    refused(CliRunner().invoke(cli.main, ["run", "-"], input="\n"), "BadRequest", "prompt: empty")


@pytest.mark.parametrize("columns", ["50", "80", "200"])
@pytest.mark.parametrize("group", [(), ("models",), ("requests",)])
def test_summaries_are_whole_sentences_at_any_width(
    columns: str, group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setenv("COLUMNS", columns)
    command = cli.main.commands[group[0]] if group else cli.main
    assert isinstance(command, click.Group)
    # When
    lines = skynet(*group, "--help").stdout.partition("\nCommands:\n")[2]
    shown = " ".join(lines.split())
    # Then
    for name, each in command.commands.items():
        sentence = " ".join((each.help or "").split("\n\n")[0].split())
        assert f"{name} {sentence}" in shown
        assert sentence.endswith(".")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SKYNET_COMPLETE", f"{shell}_source")
    result = CliRunner().invoke(cli.main, [], prog_name="skynet")
    assert result.exit_code == 0
    assert f"_SKYNET_COMPLETE={shell}_complete" in result.stdout


def test_completion_without_a_cluster_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYNET_REDIS_URL", "unix:///nonexistent")
    monkeypatch.setenv("_SKYNET_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "skynet models remove x")
    monkeypatch.setenv("COMP_CWORD", "3")
    result = CliRunner().invoke(cli.main, [], prog_name="skynet")
    assert (result.exit_code, result.output.strip()) == (0, "")


def test_an_option_that_is_turned_off_arrives(asked: Asked) -> None:
    # Given a model that may stop its beam searches early by default
    result = skynet("generate", "hello", "--num-beams", "2", "--early-stopping", "false")
    # Then
    assert result.exit_code == 0
    assert asked.options == {"raw": False, "num_beams": 2, "early_stopping": False}


def test_options_that_are_not_set_are_left_to_the_cluster() -> None:
    assert chosen({"normalize": None, "stop": (), "top_k": 0}) == {"top_k": 0}
    assert chosen({"normalize": False, "stop": ("a",)}) == {"normalize": False, "stop": ["a"]}


@pytest.mark.parametrize("command", ["generate", "run"])
def test_every_row_of_the_option_table_with_a_flag_is_an_option(command: str) -> None:
    # When
    flags = {parameter.name: parameter.opts for parameter in cli.main.commands[command].params}
    # Then
    for option in OPTIONS + ARGUMENTS:
        assert flags.get(option.name, [""]) == [option.flag]


@pytest.mark.usefixtures("asked")
def test_generate_as_json_is_a_list_if_there_are_several() -> None:
    one = json.loads(skynet("generate", "hello", "--json").stdout)
    first, second = one["logprobs"]
    assert (one["text"], second) == (
        "text 0",
        {"token_id": 6, "token": "", "logprob": -1.0, "top": []},
    )
    assert first["top"][1] == {"token_id": 9, "token": "\n", "logprob": -2.25}
    several = json.loads(skynet("generate", "hello", "--json", "--n", "2").stdout)
    assert [answer["text"] for answer in several] == ["text 0", "text 1"]


def test_an_unknown_scenario_is_refused_with_those_known() -> None:
    refused(skynet("bench", "nope"), "BadRequest", "nope", "decode", "chord")


def test_status_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    member = {
        "node": "stage0.shard0@rack7",
        "address": "stage0.shard0",
        "pinned": "stage0.shard0",
        "state": "ready",
        "leaving": False,
        "weight_bytes": 323_000_000,
        "resident_bytes": 652_000_000,
        "steps": 1091,
        "silent_s": 0.3,
        "pid": 41234,
        "host": "rack7",
        "problem": "",
    }
    spare = {"address": "", "pinned": "", "state": "loading", "leaving": True}
    spare["node"] = "worker-41234@rack7"
    shard = {"address": "stage0.shard0", "heads": [0, 6]}
    plan = {"epoch": 3, "model": "SmolLM2", "dtype": "float32", "chord_span": "auto"}
    plan |= {"weight_dtype": "bfloat16", "quantisation": "q4+q8", "kv_dtype": "float32"}
    status = {
        "redis": "redis://:***@redis:6379/0",
        "prefix": "skynet:",
        "redis_memory_bytes": 275_000_000,
        "unavailable": ["quick detection"],
        "plan": {**plan, "stages": [{"layers": [0, 30], "shards": [shard]}]},
        "exchange_dtypes": ["auto", "int8"],
        "waiting_for": ["no orchestrator", "stage0.shard1 has no worker"],
        "members": [member, {**member, **spare}],
        "queues": {"stage0.shard0": 2, "orchestrator": 0},
        "requests": {"open": 4},
        "engine": {
            "state": "waiting",
            "tokens_per_s": 1234.5,
            "prompt_tokens": 1_234_567,
            "cached_tokens": 1_100_000,
        },
        "events": [{"at": 1.8e9, "kind": "ready", "text": "plan 3: all", "duration_s": 1.5}],
    }
    monkeypatch.setenv("COLUMNS", "80")
    # When
    result = CliRunner().invoke(click.command()(lambda: terminal.print_status(status)))
    # Then
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Redis    redis://:***@redis:6379/0, prefix skynet:, 275 MB"
    assert "Without  quick detection" in lines
    assert "Dtypes   float32, q4+q8 weights, rounded by int8 partials" in lines
    assert "Waits    no orchestrator" in lines
    assert "Waits    stage0.shard1 has no worker" in lines
    assert any(line.startswith("Engine") and "1234.5 tokens/s" in line for line in lines)
    assert "Cache    1,100,000 of 1,234,567 prompt tokens were reused" in lines
    row = next(line for line in lines if line.startswith("stage0.shard0"))
    for cell in ("ready", "[0, 6)", "323 MB", "652 MB", "1091", "0.3 s"):
        assert cell in row
    (line,) = [line for line in lines if line.startswith("(any)")]
    assert "leaving" in line
    assert line.endswith("worker-41234@rack7")
    assert any(line.endswith("ready: plan 3: all, 1.50 s") for line in lines)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("words", [("-Q", "stage9"), ("-Q", "stage0.shard0,orchestrator")])
def test_a_worker_with_a_wrong_place_is_refused_in_one_line(words: tuple[str, ...]) -> None:
    # When
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "skynet", "worker", *words],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "SKYNET_REDIS_URL": "unix:///nonexistent"},
    )
    # Then
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ConfigurationError: ")
    assert "-Q stage0.shard1" in done.stderr


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    # Given
    before = signal.getsignal(signal.SIGTERM)
    # When
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    # Then
    assert signal.getsignal(signal.SIGTERM) is before


def write_weights(directory: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros((4, 4), np.float32)}, directory / "model.safetensors")
