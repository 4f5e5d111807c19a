"""/v1/models, and the tokenizers of models: /tokenize, /detokenize, /tokenizer_info."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from skynet.errors import SkynetError
from skynet.gateway.answer_form import AnswerForm
from skynet.gateway.clusters import Cluster, Served
from skynet.gateway.conversation import chat_body
from skynet.gateway.errors import api_error
from skynet.gateway.gateway import gateway_of
from skynet.gateway.prompts import chat_prompt, completion_prompt
from skynet.gateway.schemas.body import Body, Ids, Objects, refuse

router = APIRouter(tags=["models"])


class TokenizeBody(Body):
    """A prompt, or messages for the chat template."""

    prompt: str | None = Field(None, max_length=4_000_000)
    messages: Objects | None = Field(None, min_length=1, max_length=10_000)
    add_special_tokens: bool = True
    return_token_strs: bool = True


class DetokenizeBody(Body):
    tokens: Ids = Field(max_length=1_000_000)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models of all clusters that answer."""
    listed, problem = [], None
    for cluster in gateway_of(request).clusters.all:
        try:
            listed.append(_model(cluster, await cluster.served()))
        except SkynetError as error:  # the others are there
            problem = error
    if not listed and problem is not None:
        raise api_error(problem)
    return {"object": "list", "data": listed}


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model."""
    cluster = await gateway_of(request).clusters.find(name)
    return _model(cluster, await cluster.served())


def _model(cluster: Cluster, served: Served) -> dict[str, Any]:
    target = served.target
    return {
        "id": served.name,
        "object": "model",
        "created": cluster.since,
        "owned_by": "skynet",
        "root": target.name,
        "parent": None,
        "max_model_len": served.max_tokens,
        "meta": {
            "digest": target.model,
            "dtype": target.dtype,
            "weights": target.quantisation or target.weight_dtype or target.dtype,
            "slots": target.num_slots,
            "n_ctx": served.max_tokens,
            "n_vocab": served.model.vocab_size,
            "tasks": list(served.model.tasks),
        },
    }


@router.post("/tokenize")
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(request: Request, body: TokenizeBody) -> dict[str, Any]:
    """The tokens of a prompt, or of a chat."""
    if (body.prompt is None) == (body.messages is None):
        raise refuse("prompt", "give a prompt or messages", "invalid_value")
    cluster = await gateway_of(request).clusters.find(body.model)
    served = await cluster.served()

    def encode() -> list[int]:
        if body.messages is not None:
            chat = chat_body({**body.extras(), "messages": body.messages})
            return chat_prompt(served, chat, AnswerForm.of(served, chat)).ids
        if not body.prompt:
            return []
        if not body.add_special_tokens:
            return served.model.text.encode_inside(body.prompt)
        return completion_prompt(served, body.prompt).ids

    def spell() -> list[str] | None:
        spelled = served.model.text.spell
        return [spelled(each) for each in tokens] if body.return_token_strs else None

    tokens = await cluster.call(encode)
    spelled = await cluster.call(spell)
    return {
        "count": len(tokens),
        "max_model_len": served.max_tokens,
        "tokens": tokens,
        "token_strs": spelled,
    }


@router.post("/detokenize")
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(request: Request, body: DetokenizeBody) -> dict[str, Any]:
    """The text of tokens."""
    cluster = await gateway_of(request).clusters.find(body.model)
    served = await cluster.served()
    if not body.tokens:
        return {"prompt": ""}
    ids = completion_prompt(served, body.tokens).ids
    return {"prompt": await cluster.call(lambda: served.model.text.decode(ids, False))}


@router.get("/tokenizer_info")
@router.get("/v1/tokenizer_info", include_in_schema=False)
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    """Special tokens and chat template of a model."""
    cluster = await gateway_of(request).clusters.find(model)
    served = await cluster.served()
    text = served.model.text
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": text.special_token(f"{name}_token") for name in ("bos", "eos", "pad")},
        "chat_template": text.chat_template,
        "model_max_length": served.max_tokens,
        "vocab_size": served.model.vocab_size,
    }
