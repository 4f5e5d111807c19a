"""Redis users with limited rights: refused commands are named, optional ones are done without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from access_lists import PASSWORDS, documented_rules, rule_of, set_users
from checkpoints import Tiny, make_tiny
from click.testing import CliRunner

from skynet.cli import main
from skynet.client.client import Client
from skynet.client.status import cluster_status
from skynet.errors import CommandRefused
from skynet.local.server import EmbeddedServer
from skynet.settings import settings
from skynet.staging.split import skysplit
from skynet.store.access import NEEDED, OPTIONAL, check_access, commands
from skynet.store.connection import connect
from skynet.store.members import Member, Members
from skynet.store.resp import RespConnection, command
from skynet.wire import keys

URLS = Callable[[str], str]


@pytest.fixture
def url_of(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[URLS]:
    """The documented users: a function that replies the URL of one, which settings then have."""
    set_users(client)

    def url_of(user: str) -> str:
        url = f"unix://{user}:{PASSWORDS[user]}@{server.socket}"
        monkeypatch.setenv("SKYNET_REDIS_URL", url)
        settings.cache_clear()
        return url

    yield url_of
    for user in PASSWORDS:
        client.acl_deluser(user)


def allow(client: redis.Redis, user: str, *rules: str) -> None:
    client.execute_command("ACL", "SETUSER", user, *rules)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_the_documented_commands_are_those_in_the_code() -> None:
    rules = {rule for rule in documented_rules("skynet") if rule.startswith("+")}
    assert rules == {rule_of(needed) for needed in [*commands(NEEDED), *commands(OPTIONAL)]}


def test_the_documented_user_may_run_all_needed_commands(url_of: URLS) -> None:
    with connect(url_of("skynet")) as limited:
        check_access(limited)
        # And the question has run none of them
        assert limited.exists(keys.probe_key()) == 0


@pytest.mark.parametrize("needed", commands(NEEDED))
def test_a_missing_right_is_found_and_named(client: redis.Redis, url_of: URLS, needed: str) -> None:
    if needed in ("EXEC", "DISCARD"):
        pytest.skip("it would end the question")
    # Given a user without one command / When rights are checked
    allow(client, "skynet", rule_of(needed).replace("+", "-"))
    with connect(url_of("skynet")) as limited, pytest.raises(CommandRefused) as caught:
        check_access(limited)
    # Then the error names it and the user
    assert f"refuses {needed.split()[0]}" in str(caught.value)
    assert "'skynet'" in str(caught.value)


def test_a_missing_channel_is_found_and_named(client: redis.Redis, url_of: URLS) -> None:
    # Given a user whose channels are a pattern only, which PSUBSCRIBE does not match
    allow(client, "skynet", "resetchannels", "&skynet:*")
    with connect(url_of("skynet")) as limited:
        # When rights are checked / Then
        with pytest.raises(CommandRefused, match=r"PSUBSCRIBE skynet:/0\.celery\.pidbox to user"):
            check_access(limited)


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_refused_key_is_named(client: redis.Redis, url_of: URLS, pipelined: bool) -> None:
    # Given a user who may write requests only
    limited = connect(url_of("skynet-client"))

    def write() -> None:
        with limited.pipeline() as pipe:
            pipe.get(keys.plan_key()).set(keys.plan_key(), b"x" * 10_000)
            pipe.execute() if pipelined else limited.set(keys.plan_key(), "x")

    # When it writes a plan / Then the error is SkyNet's, and redis-py's
    with pytest.raises(CommandRefused, match=f"SET {keys.plan_key()} to user") as caught:
        write()
    assert isinstance(caught.value, redis.ResponseError)
    assert len(str(caught.value)) < 600
    limited.close()


def test_a_command_of_a_script_and_of_the_hot_path_is_named(
    client: redis.Redis, url_of: URLS
) -> None:
    # Given a user without LPUSH
    allow(client, "skynet", "-lpush")
    url = url_of("skynet")
    # When it pushes / Then
    hot = RespConnection(url, timeout_s=5)
    with pytest.raises(CommandRefused, match="LPUSH to user 'skynet'"):
        hot.call([command(b"LPUSH", b"skynet:x", b"1")])
    hot.close()
    script = "return redis.call('LPUSH', KEYS[1], 1)"
    with (
        connect(url) as limited,
        pytest.raises(CommandRefused, match="LPUSH in EVAL skynet:x to user"),
    ):
        limited.eval(script, 1, "skynet:x")


@pytest.mark.parametrize(
    ("words", "refused", "what"),
    [
        (("status",), "-get", "GET skynet:target"),
        (("models",), "-scan", "SCAN"),
        (("rebalance",), "-set", "SET skynet:rebalance"),
        (("generate", "one"), "-time", "TIME"),
        (("generate", "one"), "-xread", "XREAD skynet:request:"),
        (("split", "MODEL"), "-incrby", "INCRBY skynet:revision"),
        (("split", "MODEL"), "-watch", "WATCH skynet:model:"),
    ],
    ids=str,
)
def test_a_command_line_names_what_is_refused(
    client: redis.Redis,
    url_of: URLS,
    tiny: Tiny,
    words: tuple[str, ...],
    refused: str,
    what: str,
) -> None:
    # Given a staged model, unless it is to be split, and a user without a command
    if words[0] != "split":
        skysplit(str(tiny.path), 1, 1, url=url_of("skynet"))
    allow(client, "skynet", refused)
    url_of("skynet")
    # When the command line needs it
    result = CliRunner().invoke(main, [str(tiny.path) if w == "MODEL" else w for w in words])
    # Then it ends with one line
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if "refuse" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"CommandRefused: Redis refuses {what}")
    assert "to user 'skynet'" in errors[0]
    assert "Traceback" not in result.output


def test_a_request_is_submitted_where_its_message_is_refused(
    client: redis.Redis, url_of: URLS, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a user who may write no queue
    skysplit(str(tiny.path), 1, 1, url=url_of("skynet"))
    allow(client, "skynet-client", "-lpush")
    # When a request is submitted
    user = Client(url_of("skynet-client"))
    user.submit_prompt([1])
    # Then its record is there, from which an orchestrator takes it
    assert user.requests.num_open() == 1
    assert "message not sent: Redis refuses LPUSH skynet:orchestrator" in caplog.text
    user.close()


def test_what_is_lost_without_optional_commands_is_told(client: redis.Redis, url_of: URLS) -> None:
    # Given a member, and a user with all rights
    url = url_of("skynet")
    limited = connect(url)
    members, one = Members(limited, 60), Member("a", "a", "stage0.shard0", "here", 7)
    members.renew(one)
    status = cluster_status(limited, url)
    assert status["unavailable"] == []
    assert status["redis_memory_bytes"] > 0
    # When the optional commands are refused
    allow(client, "skynet", "-info", "-client|id", "-client|list")
    members.renew(one)
    assert members.broken([Member("b", "b", "", "here", 7, connection=10**9)]) == set()
    check_access(limited)
    # Then work goes on, and the status tells what is lost
    status = cluster_status(limited, url)
    assert [reason.partition(":")[0] for reason in status["unavailable"]] == [
        "memory figures, and the check that a model fits",
        "quick detection of closed connections",
    ]
    assert status["redis_memory_bytes"] is None
    assert [member["id"] for member in status["members"]] == ["a"]
    assert not members.sees_connections
    result = CliRunner().invoke(main, ["status"])
    assert "Without  quick detection" in result.stdout
    assert "memory unknown" in result.stdout
    limited.close()


def test_a_client_reads_members_whose_leases_have_run_out(
    client: redis.Redis, url_of: URLS
) -> None:
    # Given a member that is long gone, and a user who may not remove it
    client.zadd(keys.members_key(), {"ancient": 1})
    client.acl_log_reset()
    # When it lists the members / Then there are none, and it has not tried to
    with connect(url_of("skynet-client")) as limited:
        assert Members(limited, 3).all() == []
    assert "zremrangebyscore" not in [refused["object"] for refused in client.acl_log()]
