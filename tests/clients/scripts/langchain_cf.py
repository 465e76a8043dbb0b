"""langchain-cloudflare: both endpoint formats, whole and streamed, with an adapter."""

from langchain_cloudflare import ChatCloudflareWorkersAI, CloudflareWorkersAIEmbeddings
from tell import ACCOUNT, BASE, EMBED_MODEL, MODEL, PIRATE, QUESTION, TOKEN, V4, call, raises


def model(form: str, **more: object) -> ChatCloudflareWorkersAI:
    return ChatCloudflareWorkersAI(
        account_id=ACCOUNT, api_token=TOKEN, base_url=V4, model=MODEL, temperature=0, max_tokens=40,
        endpoint_format=form, **more,
    )  # fmt: skip


def whole(form: str) -> None:
    assert model(form).invoke(QUESTION).content == BASE


def lora(form: str) -> None:
    assert model(form, model_kwargs={"lora": "pirate"}).invoke(QUESTION).content == PIRATE


def stream(form: str) -> None:
    pieces = list(model(form, model_kwargs={"lora": "pirate"}).stream(QUESTION))
    assert "".join(piece.content for piece in pieces) == PIRATE
    assert len(pieces) > 3


def embeddings() -> None:
    model = CloudflareWorkersAIEmbeddings(
        account_id=ACCOUNT, api_token=TOKEN, api_base_url=f"{V4}/accounts", model_name=EMBED_MODEL
    )
    assert [len(vector) for vector in model.embed_documents(["which hall", "the tide"])] == [32, 32]
    assert len(model.embed_query("which hall")) == 32


def errors() -> None:
    error = raises(Exception, lambda: model("workers_ai", model_kwargs={"lora": "nobody"}).invoke(QUESTION))
    assert "404" in str(error) or "Finetune nobody not found" in str(error), repr(error)


for each in ("workers_ai", "openai_compatible"):
    call(f"chat, {each}", lambda form=each: whole(form))
    call(f"LoRA, {each}", lambda form=each: lora(form))
    call(f"stream, {each}", lambda form=each: stream(form))
call("embeddings", embeddings)
call("errors", errors)
