"""Bodies of /v1/embeddings, /v1/classify, /v1/rerank and /v1/score."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from skynet.gateway.schemas.body import Body, FirstError, Prompts, refuse

MAX_INPUTS = 2048  # OpenAI's
MAX_CHARACTERS = 4_000_000

Input = str | list[int]
Text = str | dict[str, Any]
TextList = Annotated[list[Text], FirstError()]


class TextTaskBody(Body):
    """A body whose texts an encoder reads."""

    priority: int | None = Field(None, ge=0, le=9)
    timeout: float | None = Field(None, gt=0, le=86_400)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `submit_prompts` beside the task's options."""
        given = {"priority": self.priority, "timeout": self.timeout}
        return {name: value for name, value in given.items() if value is not None}


class InputBody(TextTaskBody):
    """input: a text, token ids, or a list of either."""

    input: Prompts = Field(max_length=MAX_CHARACTERS)

    def inputs(self) -> list[Input]:
        """The inputs, each a text or token ids.

        Raises:
            ApiError: 400, none, too many, or one is empty.
        """
        given: list[Any] = [self.input] if isinstance(self.input, str) else list(self.input)
        if given and isinstance(given[0], int):
            given = [given]
        for index, item in enumerate(_counted("input", given)):
            if not item:
                raise refuse("input", f"item {index} is empty", "invalid_value")
        return given


class EmbeddingBody(InputBody):
    """Of /v1/embeddings. pooling, normalize, prompt_name: options of task `embed`."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: str | None = Field(None, max_length=64)
    normalize: bool | None = None
    prompt_name: str | None = Field(None, max_length=256)

    def options(self) -> dict[str, Any]:
        """Options of the task."""
        given = {name: getattr(self, name) for name in ("pooling", "normalize", "prompt_name")}
        return {name: value for name, value in given.items() if value is not None}


class ClassifyBody(InputBody):
    """Of /v1/classify."""


class PairBody(TextTaskBody):
    """A body with pairs of texts. instruction: option of task `rerank`."""

    instruction: str | None = Field(None, max_length=MAX_CHARACTERS)


class RerankBody(PairBody):
    """Of /v1/rerank, as Jina and Cohere have it. Documents are texts, or objects with a `text`."""

    query: Text
    documents: TextList = Field(min_length=1, max_length=MAX_INPUTS)
    top_n: int | None = Field(None, ge=0)
    return_documents: bool = True

    def texts(self) -> list[str]:
        """The query, then the documents."""
        return [
            _text("query", self.query),
            *(_text(f"documents[{n}]", each) for n, each in enumerate(self.documents)),
        ]


class ScoreBody(PairBody):
    """Of /v1/score: text_1 and text_2, or queries and documents. One text is compared with each of
    several; of lists of one length, texts at the same place."""

    text_1: Text | TextList | None = None
    text_2: Text | TextList | None = None
    queries: Text | TextList | None = None
    documents: Text | TextList | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of texts.

        Raises:
            ApiError: 400, a side is missing, or the lengths do not fit.
        """
        names = ("queries", "documents") if self.text_1 is None else ("text_1", "text_2")
        if (self.text_1 is None) == (self.queries is None):
            raise refuse("text_1", "give text_1 and text_2, or queries and documents")
        first, second = (_texts(name, getattr(self, name)) for name in names)
        if len(first) not in (1, len(second)):
            raise refuse(
                names[0],
                f"{len(first)} texts, {names[1]} has {len(second)}: expected 1, or as many",
                "invalid_value",
            )
        first = first * len(second) if len(first) == 1 else first
        return list(zip(first, second, strict=True))


def _texts(name: str, given: Any) -> list[str]:
    if given is None:
        raise refuse(name, "missing", "invalid_value")
    if not isinstance(given, list):
        return [_text(name, given)]
    return [_text(f"{name}[{n}]", each) for n, each in enumerate(_counted(name, given))]


def _counted(name: str, given: list[Any]) -> list[Any]:
    if not given:
        raise refuse(name, "empty", "invalid_value")
    if len(given) > MAX_INPUTS:
        raise refuse(name, f"{len(given)} of them, at most {MAX_INPUTS}", "invalid_value")
    return given


def _text(name: str, given: Text) -> str:
    """A text, or the one in an object: documents of some clients have more fields."""
    text = given if isinstance(given, str) else given.get("text")
    if not isinstance(text, str) or not text:
        raise refuse(name, "expected a text that is not empty, or an object with one as `text`")
    return text
