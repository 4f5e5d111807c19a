"""Handles the message of a step without Celery's Request object and tracer.

A strategy is what Celery calls with each message of a task (`Task.Strategy`). Whatever needs
Celery's own way gets it: a task that sends events, a message that is revoked, expires or waits for
a time, a rate limit, a log level or a signal's receiver that tells of every task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.app.trace import TraceInfo
from celery.exceptions import Ignore
from celery.states import FAILURE
from celery.utils.log import get_logger
from celery.worker import state, strategy

logger = logging.getLogger(__name__)

DIRECT = f"{__name__}:direct"  # for the tasks' option `Strategy`

# Celery's loggers of "task received" and "task succeeded".
_LOGGERS = (get_logger("celery.worker.strategy"), get_logger("celery.app.trace"))
_SIGNALS = (
    signals.task_received,
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
)
# Headers that ask for something the direct way does not do.
_SPECIAL = ("eta", "expires", "chain", "callbacks", "errbacks", "stamped_headers")

Handler = Callable[..., Any]


def direct(task: Any, app: Any, consumer: Any) -> Handler:
    """The handler of a task's messages; made by Celery when a worker starts to consume."""
    celerys_way: Handler = strategy.default(task, app, consumer)

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        if body is not None or callbacks or _is_watched(task, consumer):
            return celerys_way(message, body, ack, reject, callbacks)
        payload = message.payload
        if _is_special(message.headers, payload):
            return celerys_way(message, body, ack, reject, callbacks)
        args, kwargs, embed = payload
        fields = {
            **message.headers,
            **embed,
            "args": args,
            "kwargs": kwargs,
            "delivery_info": message.delivery_info,
            "hostname": consumer.hostname,
            "is_eager": False,
            "headers": {},  # Celery would look for custom ones
        }
        request = Context(fields, called_directly=False)
        state.total_count.update({task.name: 1})
        state.all_total_count[0] += 1
        ack(logger, consumer.connection_errors)
        _run(task, request)
        return None

    return handle


def _is_watched(task: Any, consumer: Any) -> bool:
    """Whether events, logs, signals or a rate limit concern every task."""
    eventer = consumer.event_dispatcher
    return (
        bool(task.send_events and eventer and eventer.enabled)
        or any(signal.receivers for signal in _SIGNALS)
        or any(each.isEnabledFor(logging.INFO) for each in _LOGGERS)
        or (not consumer.disable_rate_limits and consumer.task_buckets[task.name] is not None)
    )


def _is_special(headers: dict[str, Any], payload: Any) -> bool:
    """Whether the message is not a plain one of protocol 2, to be run now."""
    if not (isinstance(payload, list | tuple) and len(payload) == 3):
        return True
    args, kwargs, embed = payload
    return (
        not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict))
        or any(headers.get(name) or embed.get(name) for name in _SPECIAL)
        or not headers.get("ignore_result")
        or headers.get("id") in state.revoked
        or bool(state.revoked_stamps)
    )


def _run(task: Any, request: Context) -> None:
    """Run the task and report its part, success or failure, as Celery's tracer does."""
    task.request_stack.push(request)
    try:
        result = task.run(*request.args, **request.kwargs)
        task.backend.mark_as_done(request.id, result, request, store_result=False)
    except Ignore as ignored:
        ignored.__traceback__ = None
    except MemoryError:
        raise
    except Exception as error:
        _report(task, request, error)
    finally:
        task.request_stack.pop()


def _report(task: Any, request: Context, error: Exception) -> None:
    try:
        TraceInfo(FAILURE, error).handle_error_state(task, request)
    except Exception:
        logger.exception("task %s: its failure could not be reported: %s", task.name, error)
