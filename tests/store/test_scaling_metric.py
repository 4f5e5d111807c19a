"""The key by which KEDA counts requests: see deploy/kubernetes/keda/scaledobject.yaml."""

from __future__ import annotations

import redis
from orchestrator_cases import submit

from skynet.request.record import End
from skynet.store.requests import Requests
from skynet.wire import keys


def test_the_sorted_set_that_keda_counts_has_the_unfinished_requests(client: redis.Redis) -> None:
    # Given no request / Then there is no key, which KEDA counts as 0
    assert client.type(keys.open_requests_key()) == b"none"
    # When two are submitted, one starts and one ends
    submit(client, "a")
    submit(client, "b")
    # Then the key is of a type that KEDA counts, and has those that have not ended
    assert client.type(keys.open_requests_key()) == b"zset"
    assert client.zcard(keys.open_requests_key()) == 2
    requests = Requests(client, 1000)
    requests.writer.start(["a"])
    assert client.zcard(keys.open_requests_key()) == 2
    requests.writer.finish("b", End(finish_reason="length"))
    assert client.zcard(keys.open_requests_key()) == 1
    # And Celery's queue shows none of them
    assert client.llen(keys.ORCHESTRATOR_QUEUE) == 0
