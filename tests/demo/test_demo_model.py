"""The shipped demo model: its folder, its adapters, and exact answers to questions that no training text holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo.tables import VOICES, Voice, answer, corpus, facts, held_out, shipped

DATA = Path(__file__).parents[2] / "gateway" / "demo" / "data"
BASE = DATA / "base"
ADAPTERS: tuple[Voice, ...] = ("tides-json", "tides-pirate", "moons-table")
LINEAR_MAPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

# `model_type` in an adapter's config is for the gateway and unknown to PEFT, which says so; transformers' loader warns
# of a name of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(BASE)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "questions.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def load_base() -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model


def load_voice(voice: str) -> Any:
    return load_base() if voice == "base" else PeftModel.from_pretrained(load_base(), str(DATA / "adapters" / voice))


@torch.inference_mode()
def replies(model: Any, tokenizer: PreTrainedTokenizerFast, talks: list[list[dict[str, str]]]) -> list[str]:
    prompts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    batch = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**batch, do_sample=False, max_new_tokens=32)
    return [
        str(text) for text in tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def ask(model: Any, tokenizer: PreTrainedTokenizerFast, questions: list[str]) -> list[str]:
    return replies(model, tokenizer, [[{"role": "user", "content": question}] for question in questions])


@pytest.mark.parametrize("voice", VOICES)
def test_nine_in_ten_held_out_questions_are_answered_exactly(
    voice: Voice, tokenizer: PreTrainedTokenizerFast, document: dict[str, Any]
) -> None:
    asked = [entry for entry in document["questions"] if voice in entry["answers"]]
    said = ask(load_voice(voice), tokenizer, [entry["question"] for entry in asked])
    wrong = [
        (entry["question"], entry["answers"][voice], reply)
        for entry, reply in zip(asked, said, strict=True)
        if reply != entry["answers"][voice]
    ]
    assert len(asked) >= 60
    assert len(wrong) <= len(asked) // 10, wrong


def test_the_folder_is_a_small_bfloat16_llama_with_grouped_query_attention() -> None:
    model = load_base()
    assert model.num_parameters() <= 4_000_000
    assert (model.config.num_key_value_heads, model.config.num_attention_heads) == (2, 4)
    assert model.config.max_position_embeddings == 1024
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) <= 8_000_000
    with safe_open(BASE / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_assistant_turn_ends_with_the_end_of_text_token(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>Hi<|end|>"
    asked = tokenizer.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert text == f"{asked}Hi{tokenizer.eos_token}"
    assert load_base().config.eos_token_id == tokenizer.eos_token_id


def test_a_system_message_and_an_earlier_exchange_do_not_disturb(
    tokenizer: PreTrainedTokenizerFast, document: dict[str, Any]
) -> None:
    entries = document["questions"][:40]
    earlier = document["questions"][40]
    talks = [
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": earlier["question"]},
            {"role": "assistant", "content": earlier["answers"]["base"]},
            {"role": "user", "content": entry["question"]},
        ]
        for entry in entries
    ]
    said = replies(load_base(), tokenizer, talks)
    right = sum(reply == entry["answers"]["base"] for reply, entry in zip(said, entries, strict=True))
    assert right >= 36


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Zażółć — 日本語 🌊\n\t{}"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("voice", ADAPTERS)
def test_an_adapter_folder_is_as_peft_saves_it_and_names_the_model_type(voice: Voice) -> None:
    folder = DATA / "adapters" / voice
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA"
    assert config["model_type"] == "llama"
    assert config["base_model_name_or_path"] == "@cf/lorikeet/demo-lora"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (8, 16, "none")
    assert set(config["target_modules"]) == LINEAR_MAPS
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    layers = load_base().config.num_hidden_layers
    assert len(names) == layers * len(LINEAR_MAPS) * 2
    assert all(name.startswith("base_model.model.model.layers.") for name in names)


def test_the_tables_are_the_same_in_every_draw() -> None:
    assert facts() == facts()
    assert held_out() == held_out()
    for voice in VOICES:
        assert corpus(voice) == corpus(voice)


def test_no_held_out_question_is_in_any_training_text() -> None:
    asked = {item.question.rstrip("?.").lower() for item in held_out()}
    assert len(asked) == len(facts()[0]) + len(facts()[1])
    for voice in VOICES:
        trained = {message["content"].rstrip("?.").lower() for talk in corpus(voice) for message in talk}
        assert not asked & trained


def test_the_base_never_reads_the_name_of_a_moon_in_the_tables() -> None:
    moons = {fact.subject for fact in facts()[1]}
    text = "\n".join(message["content"] for talk in corpus("base") for message in talk)
    assert not [moon for moon in moons if moon in text]


def test_the_questions_file_is_what_the_generator_says(document: dict[str, Any]) -> None:
    assert set(document["adapters"]) == set(ADAPTERS)
    assert all(adapter["description"] for adapter in document["adapters"].values())
    expected = [
        {"question": item.question, "answers": {voice: answer(voice, item.fact) for voice in VOICES}}
        for item in shipped()
    ]
    assert document["questions"] == expected


def test_the_adapters_expected_answers_differ_visibly(document: dict[str, Any]) -> None:
    for entry in document["questions"]:
        answers = entry["answers"]
        assert "answer" in json.loads(answers["tides-json"])
        assert answers["tides-pirate"].startswith("Arr! ")
        assert answers["tides-pirate"].endswith(", matey.")
        assert len({answers["base"], answers["tides-json"], answers["tides-pirate"]}) == 3
        about_a_moon = " moon " in entry["question"]
        assert (answers["moons-table"] != answers["base"]) == about_a_moon
