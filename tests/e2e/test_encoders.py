"""Encoders as `lorikeet serve` starts them: weights by settings, a process each, started again when it is killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from runtime.encoder.client import MISSED_PONGS
from tests.e2e.deployment import alive, deploy
from tests.runtime.encoder.folders import write_encoder

pytestmark = pytest.mark.timeout(180)
BGE, RERANKER = "@cf/baai/bge-small-en-v1.5", "@cf/baai/bge-reranker-base"


def test_an_embedder_and_a_reranker_are_served_and_replaced(tmp_path: Path) -> None:
    write_encoder(tmp_path / "bge", "bert")
    write_encoder(tmp_path / "rank", "xlm-roberta", "rank")
    lines = [f'[encoders."{BGE}"]', f'path = "{tmp_path / "bge"}"', f'[encoders."{RERANKER}"]',
             f'path = "{tmp_path / "rank"}"']  # fmt: skip
    (tmp_path / "lorikeet.toml").write_text("\n".join(lines))
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(tmp_path / "lorikeet.toml")) as deployment:
        caller = deployment.account("encoders")
        with caller.http() as http:
            first = http.post(f"/ai/run/{BGE}", json={"text": ["which hall", "the tide"]})
            assert first.status_code == 200, first.text
            assert first.json()["result"]["shape"] == [2, 32]
            body = {"query": "tide", "contexts": [{"text": "hall"}, {"text": "tide"}]}
            ranked = http.post(f"/ai/run/{RERANKER}", json=body).json()["result"]["response"]
            assert sorted(row["id"] for row in ranked) == [0, 1]
            os.kill(deployment.processes[f"encoder {BGE}"], signal.SIGKILL)
            again = http.post(f"/ai/run/{BGE}", json={"text": ["which hall", "the tide"]})
            if again.status_code == 503:  # it was cut off in the middle
                again = http.post(f"/ai/run/{BGE}", json={"text": ["which hall", "the tide"]})
            assert again.json()["result"] == first.json()["result"]


def test_a_frozen_encoder_is_replaced(tmp_path: Path) -> None:
    write_encoder(tmp_path / "bge", "bert")
    config = tmp_path / "lorikeet.toml"
    config.write_text(f'[encoders."{BGE}"]\npath = "{tmp_path / "bge"}"')
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(config), LORIKEET_RUNTIME__RESTART_WAIT_S="60") as deployment:
        frozen = deployment.processes[f"encoder {BGE}"]
        with deployment.account("frozen").http() as http:
            first = http.post(f"/ai/run/{BGE}", json={"text": "the tide"})
            os.kill(frozen, signal.SIGSTOP)
            began = time.monotonic()
            cut = http.post(f"/ai/run/{BGE}", json={"text": "the tide"})
            assert (cut.status_code, cut.json()["errors"][0]["code"]) == (503, 7010)
            assert int(cut.headers["retry-after"]) >= 1
            assert time.monotonic() - began < MISSED_PONGS * 1.0 + 5.0
            again = http.post(f"/ai/run/{BGE}", json={"text": "the tide"})
            assert again.json()["result"] == first.json()["result"]
        assert not alive(frozen)
