"""Grammars on the device's path, interpreted: masks reach the device's sampler, beside rows that run ahead."""

import json
from pathlib import Path

from runtime.protocol import Grammar
from tests.runtime.device_rig import SIZES, device_runner, interpreted
from tests.runtime.grammars.talking import Talker, make_talker

CHOICE = Grammar("json_schema", '{"enum": ["gull", "lory"]}')


def test_a_constrained_answer_is_that_of_the_cpu_and_its_neighbour_stays_free(tmp_path: Path) -> None:
    folder = make_talker(tmp_path)
    with interpreted():
        device = Talker(folder, device_runner(folder, SIZES._replace(adapter_rows=16)), num_blocks=32)
        cpu = Talker(folder)
        for talker in (device, cpu):
            talker.ask(1, CHOICE, temperature=0.0)
            talker.ask(2, None, temperature=0.0, max_tokens=4, ignore_eos=True)
            talker.ask(3, CHOICE, temperature=0.0, logit_bias=((40, 3.0),), repetition_penalty=1.1, top_logprobs=2)
        device.run()
    cpu.run()
    assert json.loads(device.text(1)) in ("gull", "lory")
    for number in (1, 2, 3):
        assert device.tokens(number) == cpu.tokens(number)
        assert device.last(number).finish_reason == cpu.last(number).finish_reason
    scores, expected = ([score for output in talker.outputs[3] for score in output.scores] for talker in (device, cpu))
    assert [[word for word, _ in score.top] for score in scores] == [[word for word, _ in one.top] for one in expected]
    assert max(abs(one.logprob - two.logprob) for one, two in zip(scores, expected, strict=True)) < 1e-3
