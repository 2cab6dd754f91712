"""Chat templates in the ways of well-known models, and bundles that have one."""

import json
from pathlib import Path

from tests import bundles
from tests.versions import relist

TEMPLATE_FILE = "chat_template.jinja"

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

HEADERS = """{{- bos_token }}
{%- if not tools is defined %}{{- raise_exception('tools must be there') }}{% endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'Be brief.' %}
{%- endif %}
{{- '<|header|>system<|end|>\\n\\n' + system + '<|eot|>' }}
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}
        {{- raise_exception('Who is ' + message.role + '?') }}
    {%- endif %}
    {%- generation %}
    {{- '<|header|>' + message.role + '<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}
    {%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|end|>\\n\\n' }}{%- endif %}"""


def add_template(models: Path, source: str, name: str = bundles.GENERATOR) -> None:
    """Give version 1 of a bundle a chat template."""
    folder = models / name / "1"
    (folder / TEMPLATE_FILE).write_text(source, "utf-8")
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    manifest["tokenizer"]["chat_template"] = TEMPLATE_FILE
    manifest["files"] += [{"path": TEMPLATE_FILE}]
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    relist(folder)
