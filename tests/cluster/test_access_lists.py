"""A cluster over TLS whose users have the documented rights only, on a real redis-server."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from access_lists import PASSWORDS, rule_of, set_users
from checkpoints import Tiny, letters
from flower_api import flower
from processes import command, run, wait_for
from redis_servers import ConfiguredServer, free_port, make_certificates, tls_binary

from skynet.client.client import Client
from skynet.client.status import cluster_status
from skynet.errors import RequestCancelled
from skynet.staging.split import skysplit
from skynet.store.access import NEEDED, commands
from skynet.store.bad_tiles import forget_reports, push_bad_tile, reported_tiles
from skynet.store.manifest import TileName
from skynet.store.staged_models import list_models, remove_model, verify_model

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not tls_binary() or shutil.which("openssl") is None,
        reason="no redis-server with TLS, or no openssl, on PATH: `make redis` installs them",
    ),
]


@dataclass(frozen=True)
class Guarded:
    """A running server with TLS and the documented users; `admin` may do everything."""

    directory: Path
    port: int
    admin: redis.Redis

    def url(self, user: str) -> str:
        authority = self.directory / "ca.pem"
        place = f"localhost:{self.port}/0?ssl_ca_certs={authority}"
        return f"rediss://{user}:{PASSWORDS[user]}@{place}"

    def refused(self) -> list[str]:
        """Commands, keys and channels that it refused since the start, with their users."""
        log = self.admin.acl_log()
        # Names of libraries, which redis-py tells newer servers, and may.
        names = [entry for entry in log if entry["object"] != "client|setinfo"]
        return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in names]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    directory = Path(tempfile.mkdtemp(prefix="skynet-tls-"))
    make_certificates(directory)
    port, socket = free_port(), str(directory / "r.sock")
    files = {"cert": "server.pem", "key": "server.key", "ca-cert": "ca.pem"}
    config = ["bind 127.0.0.1", "port 0", f"tls-port {port}", "tls-auth-clients no", 'save ""']
    config += [f"tls-{kind}-file {directory / name}" for kind, name in files.items()]
    config += [f"unixsocket {socket}", "unixsocketperm 700"]
    admin = redis.Redis(unix_socket_path=socket, decode_responses=True)
    server = ConfiguredServer(directory, config, admin.ping, binary=tls_binary())
    server.start()
    set_users(admin)
    yield Guarded(directory, port, admin)
    admin.close()
    server.stop()
    shutil.rmtree(directory)


def test_a_cluster_with_the_documented_rights_only(
    guarded: Guarded, tiny: Tiny, tmp_path: Path
) -> None:
    # Through Redis: direct links use none of its commands
    environment = {"SKYNET_REDIS_URL": guarded.url("skynet"), "SKYNET_EXCHANGE": "redis"}
    user = Client(guarded.url("skynet-client"))
    with ExitStack() as stack:
        # Given workers of one user, and a client that is another
        stack.callback(user.close)
        pids = {}
        for place in ("stage0.shard0", "stage0.shard1", "orchestrator"):
            words = ("celery", "-A", "skynet", "worker", "-Q", place)
            log = tmp_path / f"{place}.log"
            worker = command(*words, environment=environment, log=log, cwd=tmp_path)
            pids[place] = stack.enter_context(worker)
        # When a model is split / Then requests are answered, embedded ones, cancelled ones
        skysplit(str(tiny.path), 1, 2, dtype="float32", url=guarded.url("skynet"))
        generation = user.submit_prompt(tiny.prompts[0], max_tokens=24)
        assert generation.get(timeout=100).token_ids == tiny.tokens[0]
        cancelled = user.submit_prompt(tiny.prompts[0], max_tokens=2000)
        next(cancelled.tokens(timeout=60))
        cancelled.cancel()
        with pytest.raises(RequestCancelled):
            cancelled.get(timeout=60)
        # And Flower shows workers and queues
        with flower(environment, tmp_path) as page:
            wait_for("Flower shows the workers", lambda: len(page("workers?refresh=1")) == 3)
            wait_for("Flower shows the queues", lambda: page("queues/length").get("active_queues"))
        # When a shard is killed / Then a request that runs is recovered
        running = user.submit_prompt(tiny.prompts[1], max_tokens=200)
        next(running.tokens(timeout=60))
        pids["stage0.shard1"].send_signal(signal.SIGKILL)
        assert running.get(timeout=100).token_ids[:24] == tiny.tokens[1]
        # And status, models and the commands of the command line work for the client
        status = cluster_status(user.redis, user.url)
        assert (status["unavailable"], status["missing"]) == ([], [])
        assert [model.complete for model in list_models(user.redis)] == [True]
        client = {"SKYNET_REDIS_URL": user.url}
        words = ("generate", "--raw", "--max-tokens", "24", letters(tiny.prompts[2]))
        done = run("skynet.cli", *words, environment=client)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == letters(tiny.tokens[2])
    # And staged models can be checked, repaired and removed
    owner = Client(guarded.url("skynet"))
    (model,) = list_models(owner.redis)
    assert verify_model(owner.redis, model).is_good
    push_bad_tile(owner.redis, model.digest, TileName("x", 0))
    forget_reports(owner.redis, model.digest, reported_tiles(owner.redis, model.digest))
    remove_model(owner.redis, model, force=True)
    owner.close()
    # And all that without one refused command
    assert guarded.refused() == []
    # And every documented command was used, but those of a leader's successor and of a staging that
    # is given up
    used = {name.removeprefix("cmdstat_") for name in guarded.admin.info("commandstats")}
    assert {rule_of(needed)[1:] for needed in commands(NEEDED)} - used <= {"xrange", "unwatch"}


@pytest.mark.parametrize("place", ["stage0.shard0", "orchestrator"])
def test_a_worker_that_lacks_rights_ends_with_one_line(
    guarded: Guarded, tmp_path: Path, place: str
) -> None:
    # Given a user without two commands
    guarded.admin.execute_command("ACL", "SETUSER", "skynet", "-brpop", "-psubscribe")
    try:
        # When a worker starts
        environment = {"SKYNET_REDIS_URL": guarded.url("skynet")}
        done = run("celery", "-A", "skynet", "worker", "-Q", place, environment=environment)
    finally:
        set_users(guarded.admin)
    # Then it ends, with a line that names them and the user
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "refuses" in line]
    assert len(lines) == 1
    assert lines[0].startswith("CommandRefused: Redis refuses BRPOP skynet:probe, PSUBSCRIBE ")
    assert "to user 'skynet'" in lines[0]
    assert "Traceback" not in done.stderr
