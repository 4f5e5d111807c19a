"""Tasks of the orchestrator. `skynet.generate` is the one that Flower shows for a request."""

from collections.abc import Sequence
from typing import Any

from celery.exceptions import Ignore

from skynet.celery import app
from skynet.chords.strategy import DIRECT
from skynet.settings import settings
from skynet.wire import keys


@app.task(name=keys.GENERATE_TASK, bind=True)
def generate(self: Any) -> None:
    """Accept the request with this task's id; its result is stored when it ends."""
    app.runtime.on_message("accept", self.request.id)
    raise Ignore  # the engine reports success or failure under this id


@app.task(name=keys.CANCEL_TASK, ignore_result=True, send_events=False)
def cancel(request_id: str) -> None:
    """Cancel a request, at the end of its step."""
    app.runtime.on_message("cancel", request_id)


@app.task(
    name=keys.FINISH_STEP_TASK, ignore_result=True, send_events=settings().trace, Strategy=DIRECT
)
def finish_step(
    parts: list[bytes], epoch: int, step: int, layer: int, spent_s: float = 0.0, plan_id: str = ""
) -> None:
    """Merge the shards' candidates and sample: the body of a step's last chord."""
    app.runtime.on_message("finish_step", parts, epoch, step, spent_s, plan_id)


@app.task(
    name=keys.FAIL_STEP_TASK, ignore_result=True, send_events=settings().trace, Strategy=DIRECT
)
def fail_step(
    epoch: int,
    step: int,
    kind: str,
    message: str,
    rows: Sequence[int] = (),
    plan_id: str = "",
) -> None:
    """A shard could not compute its part; rows: those with NaN or infinity."""
    app.runtime.on_message("fail_step", epoch, step, kind, message, rows, plan_id)
