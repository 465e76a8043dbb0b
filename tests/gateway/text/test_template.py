"""Templates render as transformers renders them, and cannot reach anything but their messages."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gateway.text.template import ChatTemplate, TemplateFault

TEMPLATES = [
    "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}\n  {% endif %}\n{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}\n",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | trim }}|{% endfor %}",
    "{{ messages | tojson }}{% if add_generation_prompt %}>>{% endif %}",
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{%- endfor -%}{{ ns.n }}",
    "{{ messages[0]['content'].split('e')[-1] }}{{ strftime_now('%Y') }}",
]
MESSAGES = [
    {"role": "system", "content": " Be <b>brief</b> & 'kind'. "},
    {"role": "user", "content": "ünï\n\ncode"},
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_same_text_as_transformers(source: str) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES) == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% set _ = messages.append(1) %}",
        "{{ range(10000000) | list | length }}",
        "{{ '%s' | format(messages) | attr('__class__') }}{{ 1 / 0 }}",
        "{{ messages[7].content + 1 }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateFault):
        ChatTemplate(source, bos=None, eos=None).render(MESSAGES)
