"""/v1/cancel: ends an answer that is not wanted any more, from any connection."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request

from skynet.gateway.resume import generations_of, submitted

router = APIRouter(tags=["requests"])

PREFIX = re.compile(r"^(chatcmpl-|cmpl-|resp_|msg_)")


@router.post("/v1/cancel/{answer_id}")
async def cancel(request: Request, answer_id: str) -> dict[str, Any]:
    """Cancel all choices of an answer by the id that its chunks have; `cancelled` is false if it
    has ended. Who has an admin key cancels anybody's."""
    run_id = PREFIX.sub("", answer_id)
    cluster, about = await submitted(request, run_id)
    generations = generations_of(cluster, run_id, about)
    was_open = await cluster.call(lambda: [each.cancel() for each in generations])
    return {"id": answer_id, "object": "cancellation", "cancelled": any(was_open)}
