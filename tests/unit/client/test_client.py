"""The client of one cluster: when it reads its settings, and `submit_prompt` as a function."""

from __future__ import annotations

import inspect
import pickle

import pytest

import skynet
from skynet.client.client import Client
from skynet.errors import ConfigurationError


def test_an_invalid_url_is_refused_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an environment with a bad URL
    monkeypatch.setenv("SKYNET_REDIS_URL", "http://host")
    # When a client is made / Then the variable is named
    with pytest.raises(ConfigurationError, match="SKYNET_REDIS_URL"):
        Client()
    with pytest.raises(ConfigurationError, match="SKYNET_REDIS_URL"):
        skynet.Generation("id")


def test_the_default_client_reads_the_environment_at_the_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a client as that of `skynet.submit_prompt`, made under a bad URL
    monkeypatch.setenv("SKYNET_REDIS_URL", "http://host")
    client = Client(lazy=True)
    with pytest.raises(ConfigurationError, match="SKYNET_REDIS_URL"):
        client.submit_prompt("Hello")
    # When the URL is set right / Then it is this one's
    monkeypatch.setenv("SKYNET_REDIS_URL", "redis://other/3")
    assert client.url == "redis://other/3"


def test_submit_prompt_can_be_sent_to_another_process() -> None:
    # Given the default client in use: its connections cannot be pickled
    client = skynet.submit_prompt.__self__  # type: ignore[attr-defined]
    assert client.redis is client.requests.client
    # When its functions are pickled / Then they are those of the other process
    for function in (skynet.submit_prompt, skynet.submit_prompts):
        assert pickle.loads(pickle.dumps(function)) == function  # noqa: S301


def test_submit_prompt_shows_its_arguments() -> None:
    assert list(inspect.signature(skynet.submit_prompt).parameters) == [
        "prompt",
        "model",
        "task",
        "timeout",
        "raw",
        "priority",
        "n",
        "annotations",
        "traceparent",
        "options",
    ]
    assert "QueueFull" in (inspect.getdoc(skynet.submit_prompt) or "")
