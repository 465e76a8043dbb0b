"""The values of `model_type` that can be served, and the sentence for others. No torch: asked before anything loads."""

from typing import Any, Final

MODEL_TYPES: Final = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def model_type_of(config: dict[str, Any]) -> str:
    """Of a parsed `config.json`. Raises ValueError, with the list of what can be served, for any other."""
    name = str(config.get("model_type"))
    if name in MODEL_TYPES:
        return name
    hint = "; its text part can be, once exported as a folder of its own" if "text_config" in config else ""
    raise ValueError(f"model_type {name!r} is not supported{hint}; supported are {', '.join(MODEL_TYPES)}")
