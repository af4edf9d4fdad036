"""What the server takes and gives, dialect by dialect: bodies checked by pydantic, answers described for OpenAPI.

Unknown fields are ignored, as the servers do whose clients come here. Knows nothing of models, limits or HTTP statuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from gpu_server.errors import BadInput
from gpu_server.interfaces import TextKind

SHOWN_ERRORS = 3


class NotReadable(BadInput):
    """The body is no JSON, or a field of it is missing or wrong. `field` names the first one, None for the whole body."""

    def __init__(self, message: str, *, field: str | None = None, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.field = field


class EmptyInput(NotReadable):
    """There is nothing to work on: no text at all, or an empty one where the dialect forbids it."""


def _texts(value: Any) -> Any:
    """One text or a list of them as a list; token ids are told apart, because a default of LangChain's sends them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and (isinstance(value[0], int) or _is_ids(value[0])):
        raise PydanticCustomError(
            "token_ids",
            "token ids are not taken here, because they are another tokenizer's: send the texts themselves. "
            "In LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)",
        )
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) for item in value)


def _documents(value: Any) -> Any:
    """Documents as texts: a string, `{"text": …}` or `{"content": …, "metadata": …}` each."""
    if not isinstance(value, list):
        return value
    return [_document(index, item) for index, item in enumerate(value)]


def _document(index: int, item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    text = next((item[key] for key in ("text", "content") if isinstance(item.get(key), str)), None)
    if text is None:
        raise PydanticCustomError("document", "document {index} has no text under `text` or `content`", {"index": index})
    return text


_TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_DOCUMENT = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        {
            "type": "object",
            "properties": {"content": {"type": "string"}, "metadata": {"type": "object"}},
            "required": ["content"],
        },
    ]
}
Texts = Annotated[list[str], BeforeValidator(_texts), WithJsonSchema(_TEXT_OR_TEXTS)]
Documents = Annotated[list[str], BeforeValidator(_documents), WithJsonSchema({"type": "array", "items": _DOCUMENT})]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class EmbedRequest(_Body):
    """`/embed`, native."""

    texts: Texts
    return_dense: bool = True
    return_sparse: bool = True
    return_colbert: bool = Field(default=False, validation_alias=AliasChoices("return_colbert", "return_colbert_vecs"))
    kind: TextKind = "passage"


class TeiEmbedRequest(_Body):
    """`/embed` and `/embed_sparse` as TEI has them; `prompt_name` is the kind of text."""

    inputs: Texts
    normalize: bool = True
    truncate: bool = True
    prompt_name: str | None = None


class RerankRequest(_Body):
    """`/rerank`, native: the best `top_k` (all when absent), scores from 0 to 1 unless `raw_scores`."""

    query: str
    documents: Documents
    top_k: int | None = Field(default=None, ge=1, validation_alias=AliasChoices("top_k", "top_n"))
    raw_scores: bool = False


class TeiRerankRequest(_Body):
    """`/rerank` as TEI has it."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = True


class OpenAiEmbeddingsRequest(_Body):
    """`/v1/embeddings`; `input_type` is ours: the kind of text, for models that have prompts."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    input_type: TextKind = "passage"


class CohereRerankRequest(_Body):
    """`/v1/rerank`, `/v2/rerank`."""

    query: str
    documents: Documents
    model: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = True


class EmbedAnswer(BaseModel):
    """A row a text, in order; null for what was not asked for or what the model cannot make."""

    dense_embeddings: list[list[float]] | None
    sparse_embeddings: list[dict[str, float]] | None
    colbert_embeddings: list[list[list[float]]] | None = None


class SparseValue(BaseModel):
    index: int
    value: float


class RerankAnswer(BaseModel):
    """Indices of the documents, best first; `scores[i]` belongs to `rankings[i]`."""

    rankings: list[int]
    scores: list[float]


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class OpenAiEmbedding(BaseModel):
    """`embedding` is base64 of little-endian float32 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAiUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class OpenAiEmbeddingsAnswer(BaseModel):
    object: Literal["list"]
    data: list[OpenAiEmbedding]
    model: str
    usage: OpenAiUsage


class DocumentText(BaseModel):
    text: str


class CohereResult(BaseModel):
    index: int
    relevance_score: float
    document: DocumentText | None = None


class CohereRerankAnswer(BaseModel):
    """Best first, scores from 0 to 1."""

    id: str
    model: str
    results: list[CohereResult]
    usage: OpenAiUsage
    meta: dict[str, Any]


B = TypeVar("B", bound=_Body)


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises NotReadable: no JSON, NaN, broken UTF-8, half a character, nested too deep."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise NotReadable(f"the body is no JSON: {problem}") from None
    if not isinstance(data, dict):
        raise NotReadable(f"the body is a JSON {type(data).__name__}, not an object")
    return data


def read(model: type[B], data: Mapping[str, Any]) -> B:
    """The checked body. Raises NotReadable that names what is wrong with which field."""
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        errors = problem.errors(include_url=False, include_input=False, include_context=False)
        field = str(errors[0]["loc"][0]) if errors[0]["loc"] else None
        raise NotReadable(_said(errors), field=field) from None


def _said(errors: Sequence[Any]) -> str:
    lines = [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors[:SHOWN_ERRORS]]
    rest = len(errors) - len(lines)
    return "; ".join(lines) + (f"; and {rest} more" if rest else "")
