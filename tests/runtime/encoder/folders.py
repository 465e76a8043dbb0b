"""Small encoders with random weights, as transformers writes them, and a tokenizer of words for them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40, "initializer_range": 0.5,
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "bert": (BertConfig, BertModel, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaModel, RobertaForSequenceClassification),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, XLMRobertaForSequenceClassification),
}
WORDS = ["which", "hall", "opens", "first", "the", "tide", "is", "high", "at", "noon", "salt", "wool"]


def write_encoder(folder: Path, kind: str, task: str = "embed") -> Any:
    """The folder, and transformers' own model of it."""
    config_type, plain, classifier = KINDS[kind]
    torch.manual_seed(11)
    config = config_type(**SIZES, num_labels=1, type_vocab_size=2 if kind == "bert" else 1, pad_token_id=0)
    model = (plain if task == "embed" else classifier)(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """[CLS] text [SEP], and for pairs [CLS] a [SEP] b [SEP]."""
    vocab = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
