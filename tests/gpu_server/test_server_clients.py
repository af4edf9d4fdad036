"""Official clients against the server, unchanged: openai, LangChain, Cohere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import cohere
import numpy as np
import openai
import pytest
import tiktoken
from cohere.core.api_error import ApiError
from langchain_openai import OpenAIEmbeddings

from tests.gpu_server.serving import Served, process

KEY = "a-key-for-tests"
MODEL = "all-MiniLM-L6-v2"
CAT, DOG = "A cat sat on the mat.", "The dog barks."


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with process("--device", "cpu", environment={"GPU_SERVER_TOKEN": KEY}) as served:
        yield served


def test_openai_with_its_defaults(server: Served):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY)
    answer = client.embeddings.create(model=MODEL, input=[CAT, DOG])
    assert [len(item.embedding) for item in answer.data] == [384, 384]
    assert answer.usage.prompt_tokens > 0
    floats = client.embeddings.create(model=MODEL, input=[CAT, DOG], encoding_format="float")
    assert np.array_equal(np.float32(floats.data[1].embedding), np.float32(answer.data[1].embedding))
    assert MODEL in {model.id for model in client.models.list()}


def test_openai_asynchronous(server: Served):
    async def ask() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=KEY) as client:
            answers = await asyncio.gather(*(client.embeddings.create(model=MODEL, input=text) for text in (CAT, DOG, CAT)))
        return [len(answer.data[0].embedding) for answer in answers]

    assert asyncio.run(ask()) == [384, 384, 384]


def test_openai_tells_the_failures_apart(server: Served):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.embeddings.create(model="text-embedding-3-large", input=CAT)
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.embeddings.create(model=MODEL, input=[CAT, ""])
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=MODEL, input=[[101, 102]])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0).embeddings.create(model=MODEL, input=CAT)


def test_langchain_with_texts(server: Served):
    client = OpenAIEmbeddings(base_url=f"{server.address}/v1", api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    assert [len(row) for row in client.embed_documents([CAT, DOG])] == [384, 384]
    assert np.dot(client.embed_query(CAT), client.embed_documents([CAT])[0]) == pytest.approx(1, abs=1e-3)


def test_langchain_by_default_sends_token_ids_and_is_told_what_to_set(server: Served, monkeypatch: pytest.MonkeyPatch):
    letters = tiktoken.Encoding("letters", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={})
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: letters)  # the real vocabularies are downloads
    client = OpenAIEmbeddings(base_url=f"{server.address}/v1", api_key=KEY, model=MODEL, max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_documents([CAT])


def test_cohere_reranks(server: Served):
    client = cohere.ClientV2(api_key=KEY, base_url=server.address)
    answer = client.rerank(model="starter", query="a cat", documents=[DOG, CAT], top_n=1)
    (best,) = answer.results
    assert best.index == 1 and 0 < best.relevance_score < 1
    assert answer.id


def test_cohere_is_told_of_a_wrong_key_and_model(server: Served):
    with pytest.raises(ApiError) as refused:
        cohere.ClientV2(api_key="wrong", base_url=server.address).rerank(model="starter", query="a", documents=[CAT])
    assert refused.value.status_code == 401
    with pytest.raises(ApiError) as refused:
        cohere.ClientV2(api_key=KEY, base_url=server.address).rerank(model="rerank-v3.5", query="a", documents=[CAT])
    assert refused.value.status_code == 404 and "starter cosine" in str(refused.value.body)
