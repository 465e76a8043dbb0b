"""Encoders beside transformers, text by text: padding, poolings, pairs; and folders that are none."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from runtime.encoder.bert import BertEncoder, check_ids
from runtime.encoder.config import Task, read_shape
from runtime.errors import ModelInvalid
from tests.runtime.encoder.folders import KINDS, write_encoder

CPU = torch.device("cpu")
TEXTS = [[2, 5, 3], [2, *range(4, 30), 3], [2, 3], [2, 9, 9, 9, 14, 3]]


def alone(model: torch.nn.Module, ids: list[int], kinds: list[int] | None = None) -> torch.Tensor:
    """transformers' hidden states, or logits, of one text without padding."""
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, len(ids)), dtype=torch.long)}
    if kinds is not None:
        given["token_type_ids"] = torch.tensor([kinds])
    with torch.inference_mode():
        said = model(**given)
    return said.logits[0] if hasattr(said, "logits") else said.last_hidden_state[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = write_encoder(tmp_path, kind)
    ours = BertEncoder(tmp_path, "embed", CPU)
    for pooling in ("mean", "cls"):
        found = ours.embed(TEXTS, [pooling] * len(TEXTS))
        for row, ids in zip(found, TEXTS, strict=True):
            hidden = alone(theirs, ids)
            wanted = functional.normalize(hidden.mean(0) if pooling == "mean" else hidden[0], dim=-1)
            torch.testing.assert_close(row, wanted, atol=2e-5, rtol=1e-4)
    mixed = ours.embed(TEXTS, ["mean", "cls", "mean", "cls"])
    torch.testing.assert_close(mixed[1], ours.embed(TEXTS, ["cls"] * 4)[1])
    assert not torch.allclose(mixed[1], ours.embed(TEXTS, ["mean"] * 4)[1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = write_encoder(tmp_path, kind, "rank")
    ours = BertEncoder(tmp_path, "rank", CPU)
    types = [[0] * (len(ids) // 2) + [1] * (len(ids) - len(ids) // 2) for ids in TEXTS]
    found = ours.rank(TEXTS, types)
    for score, ids, kinds in zip(found, TEXTS, types, strict=True):
        wanted = torch.sigmoid(alone(theirs, ids, kinds if kind == "bert" else None)[0])
        torch.testing.assert_close(score, wanted, atol=2e-5, rtol=1e-4)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    model = BertEncoder(tmp_path, "embed", CPU)
    together = model.embed(TEXTS, ["mean"] * len(TEXTS))
    for row, ids in zip(together, TEXTS, strict=True):
        torch.testing.assert_close(row, model.embed([ids], ["mean"])[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "must be one of bert"),
        ({"hidden_act": "silu"}, "with silu"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 5}, "do not fit together"),
        ({"hidden_size": "x"}, "does not describe an encoder"),
        ({"num_hidden_layers": 2}, "tensors that"),
        ({"num_hidden_layers": 4}, "encoder.layer.3"),
        ({"vocab_size": 61}, "expected"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, change: dict[str, object], said: str) -> None:
    write_encoder(tmp_path, "bert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelInvalid, match=said):
        BertEncoder(tmp_path, "embed", CPU)


@pytest.mark.parametrize("task", ["embed", "rank"])
def test_a_classifier_is_no_embedder_and_the_other_way_round(tmp_path: Path, task: Task) -> None:
    write_encoder(tmp_path, "xlm-roberta", "rank" if task == "embed" else "embed")
    with pytest.raises(ModelInvalid):
        BertEncoder(tmp_path, task, CPU)


def test_ids_are_checked(tmp_path: Path) -> None:
    write_encoder(tmp_path, "roberta")
    shape = read_shape(tmp_path)
    assert shape.max_tokens == 39  # the first place is that of the padding
    assert check_ids(shape, [[0, 59]], ()) is None
    for ids, types in (([[]], ()), ([[60]], ()), ([[-1]], ()), ([[1] * 40], ()), ([[1, 2]], [[0]]), ([[1]], [[2]])):
        assert check_ids(shape, ids, types) is not None
