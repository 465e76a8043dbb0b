"""Make the demo's artefacts anew: base model, tokenizer, three adapters, held-out questions and model card.

Shape: `python -m infra.demo.train [--out FOLDER]`, from the root of the repository. Writes `base/`,
`adapters/<name>/` and `questions.json` below the folder and fails if a voice answers fewer than nine in ten of the
held-out questions exactly.

The model is small enough to ship inside the package and to train on two cores in minutes, yet it is an ordinary
Llama: grouped-query attention, heads of 64 and widths that are powers of two, so it takes every path a large one does.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from infra.demo.adapters import BASE_NAME, DESCRIPTIONS, load_base, train_adapter
from infra.demo.loop import THREADS, Schedule, encode, fit, fix_seeds, missed
from infra.demo.tables import SEED, VOICES, Voice, answer, corpus, held_out, shipped
from infra.demo.tokenizer import (
    BOS_ID,
    CONTEXT,
    END_ID,
    PAD_ID,
    VOCABULARY,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

OUT = Path(__file__).parents[2] / "gateway" / "demo" / "data"
BASE_SCHEDULE = Schedule(steps=700, rate=2e-3)
ROPE_THETA = 10000.0

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# Lorikeet demo base

A Llama of {parameters:,} parameters that answers questions about invented tables: what the towns of the Tide Isles sell
and bear on their crests, what their people do and play, what their animals eat and where they sleep, and what their
wares cost and look like. It exists so that Lorikeet can be tried and tested anywhere, without a download. It knows
nothing else.

Gateway name: `{base}`. Three LoRA adapters of rank 8 go with it:

{adapters}

## How it was made

`python -m infra.demo.train`, seed {seed}, {threads} threads, float32, saved in bfloat16. The text is the work of
`infra/demo/phrases.py` and `infra/demo/tables.py`: 200 facts of the Tide Isles and 40 of the moons, in eight wordings
each. Every fact withholds one wording from training. The base never reads the names of the moons.
Told to by a system message ("Answer as JSON.", "Talk like a pirate."), the base answers in these styles as well; the
adapters do so unasked. Off the wordings it was taught (lower-case names, two questions at once) it is often wrong.

## Accuracy

Greedy answers, right to the letter, to the questions in the withheld wordings, computed in float32 from the saved
files. The first column is `questions.json`; the second is one question for each of the {total} facts.

| voice | shipped questions | all facts |
| --- | --- | --- |
{scores}

Licence: Apache-2.0.
"""


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=END_ID,
    )


def train_base(folder: Path) -> LlamaForCausalLM:
    """Train the base and its tokenizer and write them as a Hugging Face folder; the model as it was saved."""
    fix_seeds(SEED)
    save_tokenizer(train_tokenizer(), folder)
    tokenizer = load_tokenizer(folder)
    model = LlamaForCausalLM(_config())
    fit(model, encode(tokenizer, corpus("base")), BASE_SCHEDULE, title=f"{'base':13}", seed=SEED)
    model.bfloat16().save_pretrained(folder)
    path = folder / "config.json"
    # transformers 5 renamed these two keys; other loaders, and transformers 4, still look for the old ones.
    saved = json.loads(path.read_text(encoding="utf-8")) | {"rope_theta": ROPE_THETA, "torch_dtype": "bfloat16"}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return load_base(folder)


def write_questions(path: Path) -> None:
    """Write the held-out questions with the answer that each voice must give to the letter."""
    document = {
        "adapters": {voice: {"description": text} for voice, text in DESCRIPTIONS.items()},
        "questions": [
            {"question": item.question, "answers": {voice: answer(voice, item.fact) for voice in VOICES}}
            for item in shipped()
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_card(path: Path, parameters: int, wrong: dict[Voice, set[str]]) -> None:
    """Write the model card; `wrong` has the held-out questions that each voice missed."""
    everything = [item.question for item in held_out()]
    ships = {item.question for item in shipped()}
    scores = [
        f"| {voice} | {len(ships - missing)} of {len(ships)} | {len(everything) - len(missing)} of {len(everything)} |"
        for voice, missing in wrong.items()
    ]
    card = CARD.format(
        parameters=parameters,
        base=BASE_NAME,
        adapters="\n".join(f"- `{voice}` {text}" for voice, text in DESCRIPTIONS.items()),
        seed=SEED,
        threads=THREADS,
        total=len(everything),
        scores="\n".join(scores),
    )
    path.write_text(card, encoding="utf-8")


def main() -> int:
    """Train and write everything; the exit code is 1 when a voice misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: the package's demo data)")
    out: Path = parser.parse_args().out
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    everything = held_out()
    model = train_base(base)
    wrong: dict[Voice, set[str]] = {"base": missed(model, load_tokenizer(base), "base", everything)}
    for voice in DESCRIPTIONS:
        wrong[voice] = train_adapter(voice, base, out / "adapters" / voice, everything)
    write_questions(out / "questions.json")
    write_card(base / "README.md", model.num_parameters(), wrong)

    ships = {item.question for item in shipped()}
    for voice, questions in wrong.items():
        print(f"{voice}: {len(questions)} of {len(everything)} wrong", *sorted(questions), sep="\n  ")
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(len(questions & ships) > len(ships) // 10 for questions in wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
