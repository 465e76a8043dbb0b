"""Tokenizer folders of families that call functions: their control tokens, and templates in their manner."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from tests.gateway.text.folders import byte_level

TEMPLATES = Path(__file__).parent / "templates"
# As the public vocabularies have them: special ones, and ones that a decoder shows.
SPECIAL = {
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"],
    "mistral": ["[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
    "hermes": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
}
SHOWN = {
    "llama3": [],
    "mistral": [],
    "hermes": ["<tool_call>", "</tool_call>"],
    "qwen3": ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"],
}
EOS = {"llama3": "<|eot_id|>", "mistral": "</s>", "hermes": "<|im_end|>", "qwen3": "<|im_end|>"}
FAMILIES = tuple(SPECIAL)
FORMAT = {"llama3": "llama3", "mistral": "mistral", "hermes": "hermes", "qwen3": "hermes"}


def template(family: str) -> str:
    return (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")


def tool_base(folder: Path, family: str) -> Path:
    """A folder that transformers reads as well."""
    byte_level(folder, template(family))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL[family]])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in SHOWN[family]])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = EOS[family]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
