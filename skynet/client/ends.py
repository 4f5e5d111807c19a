"""The end of a request as its caller sees it: a completion, a last piece of text, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skynet import errors
from skynet.errors import SkynetError
from skynet.request.completion import Completion
from skynet.request.record import End, Record, Token


def completion_of(items: Sequence[Token | End], record: Record | None) -> Completion:
    """The completion of a request that ended without an error: its tokens, then its end."""
    tokens = [item for item in items if isinstance(item, Token)]
    end = next((item for item in items if isinstance(item, End)), End())
    return Completion.of(
        {
            "text": "".join(token.text for token in tokens) + end.text,
            "token_ids": [token.id for token in tokens],
            "prompt_tokens": len(record.prompt) if record else 0,
            "finish_reason": end.finish_reason,
            "timings": end.timings,
            "logprobs": [token.logprobs.as_dict() for token in tokens if token.logprobs],
            "cached_tokens": end.cached_tokens,
            **end.answer,
        }
    )


def tokens_of(item: Token | End) -> Iterator[Token]:
    """A token; of an end the text that was held back, as a token without an id.

    Raises:
        SkynetError: the error that the request ended with.
    """
    if isinstance(item, Token):
        yield item
    elif item.error:
        raise error_of(item)
    elif item.text:
        yield Token(-1, -1, item.text)


def error_of(end: End) -> SkynetError:
    """The error of a request that ended with one."""
    cls = getattr(errors, end.error, SkynetError)
    known = isinstance(cls, type) and issubclass(cls, SkynetError)
    error: SkynetError = (cls if known else SkynetError)(end.message)
    return error
