"""Bases with random weights for deployments of tests: small, and able to call functions."""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tests.gateway.text.tool_bases import EOS, tool_base


def random_base(folder: Path, family: str) -> None:
    """Random weights under the family's own tokens and template."""
    tool_base(folder, family)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(EOS[family])
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=0, eos_token_id=end, initializer_range=0.2,
    )  # fmt: skip
    written = folder / "weights"
    LlamaForCausalLM(config).save_pretrained(written)
    for file in written.iterdir():
        shutil.move(file, folder / file.name)
