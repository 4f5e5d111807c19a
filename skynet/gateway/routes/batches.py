"""/v1/files and /v1/batches."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, Response

from skynet.gateway.batch.batches import Batches
from skynet.gateway.gateway import caller_of, gateway_of
from skynet.gateway.schemas.body import refuse

router = APIRouter(tags=["batches"])
MAX_LISTED = 100


class BatchBody(BaseModel):
    input_file_id: str = Field(max_length=80)
    endpoint: str = Field(max_length=80)
    completion_window: str = Field("24h", max_length=16)
    metadata: dict[str, str] | None = Field(None, max_length=16)


def batches_of(request: Request) -> Batches:
    """The gateway's batches."""
    batches: Batches = request.app.state.batches
    return batches


def owner_of(request: Request) -> str | None:
    """Whose files and batches the caller may see; None: everybody's."""
    caller = caller_of(request)
    return None if caller.is_admin else caller.name


TheBatches = Annotated[Batches, Depends(batches_of)]
Owner = Annotated[str | None, Depends(owner_of)]


@router.post("/v1/files")
async def upload_file(
    request: Request, batches: TheBatches, file: UploadFile, purpose: Annotated[str, Form()]
) -> dict[str, Any]:
    """Keep a file of requests for a batch."""
    if purpose != "batch":
        raise refuse("purpose", f"{purpose!r:.80}: only batch")
    name, owner = file.filename or "requests.jsonl", caller_of(request).name
    stored = await asyncio.to_thread(batches.files.add, file.file, name, purpose, owner)
    return stored.to_json()


@router.get("/v1/files")
async def list_files(batches: TheBatches, owner: Owner) -> dict[str, Any]:
    """The caller's files, the newest first."""
    found = await asyncio.to_thread(batches.files.all, owner)
    return _list([each.to_json() for each in found])


@router.get("/v1/files/{file_id}")
async def get_file(batches: TheBatches, owner: Owner, file_id: str) -> dict[str, Any]:
    """A file's description."""
    return batches.files.get(file_id, owner).to_json()


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
async def get_file_content(batches: TheBatches, owner: Owner, file_id: str) -> Response:
    """A file."""
    stored = batches.files.get(file_id, owner)
    path = batches.files.path(stored.id)
    return FileResponse(path, media_type="application/jsonl", filename=stored.filename)


@router.delete("/v1/files/{file_id}")
async def delete_file(batches: TheBatches, owner: Owner, file_id: str) -> dict[str, Any]:
    """Delete a file."""
    stored = batches.files.get(file_id, owner)
    batches.files.delete(stored.id)
    return {"id": stored.id, "object": "file", "deleted": True}


@router.post("/v1/batches")
async def create_batch(request: Request, batches: TheBatches, body: BatchBody) -> dict[str, Any]:
    """Answer the requests of a file, after those that somebody waits for."""
    with_gateway = gateway_of(request)
    async with with_gateway.answering():  # not while it ends
        batch = await asyncio.to_thread(
            batches.create,
            body.endpoint,
            body.input_file_id,
            body.completion_window,
            caller_of(request).name,
            body.metadata or {},
        )
    return batch.to_json()


@router.get("/v1/batches")
async def list_batches(
    batches: TheBatches, owner: Owner, limit: int = 20, after: str = ""
) -> dict[str, Any]:
    """The caller's batches, the newest first."""
    found = await asyncio.to_thread(batches.all, owner)
    ids = [each.id for each in found]
    start = ids.index(after) + 1 if after in ids else 0
    page = found[start : start + max(1, min(MAX_LISTED, limit))]
    return _list([each.to_json() for each in page], start + len(page) < len(found))


@router.get("/v1/batches/{batch_id}")
async def get_batch(batches: TheBatches, owner: Owner, batch_id: str) -> dict[str, Any]:
    """A batch, with the number of requests that are done."""
    return batches.get(batch_id, owner).to_json()


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batches: TheBatches, owner: Owner, batch_id: str) -> dict[str, Any]:
    """Stop a batch; the answers that are there stay."""
    return batches.cancel(batches.get(batch_id, owner)).to_json()


def _list(data: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    ends = {
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
    return {"object": "list", "data": data, "has_more": has_more, **ends}
