"""A chat template of our own that writes the released model's markup, and tokenizers that know its control tokens."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from diffusiongemma.text.tokenizer import Tokenizer
from tests.native import CONTROL, native_tokenizer

CONTROL_TEXTS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *CONTROL.values()]

TEMPLATE = """\
{#- What a value looks like in a declaration, a call or a response. -#}
{%- macro spelled(value, quoted_keys=true) -%}
    {%- if value is string -%}<|"|>{{ value }}<|"|>
    {%- elif value is none -%}null
    {%- elif value is boolean -%}{{ 'true' if value else 'false' }}
    {%- elif value is mapping -%}{{ '{' }}{{ members(value, quoted_keys) }}{{ '}' }}
    {%- elif value is iterable -%}[{% for one in value %}{{ spelled(one, quoted_keys) }}{{ ',' if not loop.last }}{% endfor %}]
    {%- else -%}{{ value }}
    {%- endif -%}
{%- endmacro -%}
{%- macro members(value, quoted_keys=false) -%}
    {%- for key, one in value | dictsort -%}
        {{- spelled(key) if quoted_keys else key -}}:{{- spelled(one, quoted_keys) -}}{{- ',' if not loop.last -}}
    {%- endfor -%}
{%- endmacro -%}
{#- A schema: types in capitals, whatever else it says as it is. -#}
{%- macro schema(it) -%}
    {%- for key, one in it | dictsort -%}
        {%- if key == 'type' -%}type:<|"|>{{ one | upper }}<|"|>
        {%- elif key == 'properties' -%}properties:{
            {%- for name, each in one | dictsort -%}{{ name }}:{ {{- schema(each) -}} }{{ ',' if not loop.last }}{%- endfor -%} }
        {%- elif key == 'items' and one is mapping -%}items:{ {{- schema(one) -}} }
        {%- else -%}{{ key }}:{{ spelled(one) }}
        {%- endif -%}
        {{- ',' if not loop.last -}}
    {%- endfor -%}
{%- endmacro -%}
{#- Text of a message; what the model thought in earlier turns is not shown to it again. -#}
{%- macro without_thoughts(text) -%}
    {%- for piece in text.split('<channel|>') -%}{{ piece.split('<|channel>')[0] }}{%- endfor -%}
{%- endmacro -%}
{%- macro body(message) -%}
    {%- if message.content is string -%}
        {{- (without_thoughts(message.content) if message.role in ('assistant', 'model') else message.content) | trim -}}
    {%- elif message.content is iterable -%}
        {%- for part in message.content if part.type == 'text' -%}
            {{- (without_thoughts(part.text) if message.role in ('assistant', 'model') else part.text) | trim -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro turn(role) -%}{{ '<|turn>' ~ role ~ '\\n' }}{%- endmacro -%}

{%- set thinks = enable_thinking | default(false) -%}
{%- set keeps = preserve_thinking | default(false) -%}
{%- set first = messages[0] if messages and messages[0].role in ('system', 'developer') else none -%}
{%- set rest = messages[1:] if first else messages -%}
{%- set state = namespace(last_user=-1, open=false, waiting=false, calls=[]) -%}
{%- for message in rest if message.role == 'user' -%}{%- set state.last_user = rest.index(message) -%}{%- endfor -%}

{{- bos_token -}}
{%- if thinks or tools or first -%}
    {{- turn('system') -}}
    {%- if thinks -%}{{ '<|think|>\\n' }}{%- endif -%}
    {%- if first -%}{{ body(first) }}{%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' ~ tool.function.name ~ '{' -}}
        description:<|"|>{{ tool.function.description }}<|"|>
        {%- if tool.function.parameters -%},parameters:{ {{- schema(tool.function.parameters) -}} }{%- endif -%}
        {{- '}<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in rest -%}
    {%- if message.role == 'tool' -%}
        {%- set name = namespace(text=message.name | default('unknown')) -%}
        {%- for call in state.calls if call.id == message.tool_call_id -%}{%- set name.text = call.function.name -%}{%- endfor -%}
        {{- '<|tool_response>response:' ~ name.text ~ '{' -}}
        {%- if message.content is mapping -%}{{ members(message.content) }}
        {%- elif message.content is iterable and message.content is not string -%}value:{{ spelled(body(message)) }}
        {%- else -%}value:{{ spelled(message.content) }}
        {%- endif -%}
        {{- '}<tool_response|>' -}}
        {%- set state.waiting = false -%}
    {%- else -%}
        {%- set role = 'model' if message.role == 'assistant' else message.role -%}
        {%- if state.open and role != 'model' -%}{{ '<turn|>\\n' }}{%- set state.open = false -%}{%- endif -%}
        {%- if not state.open -%}{{ turn(role) }}{%- endif -%}
        {%- set thought = message.reasoning or message.reasoning_content -%}
        {%- if thought and (loop.index0 > state.last_user or (keeps and message.tool_calls)) -%}
            {{- '<|channel>thought\\n' ~ thought ~ '\\n<channel|>' -}}
        {%- endif -%}
        {%- for call in message.tool_calls or [] -%}
            {{- '<|tool_call>call:' ~ call.function.name ~ '{' ~ members(call.function.arguments or {}) ~ '}<tool_call|>' -}}
        {%- endfor -%}
        {{- body(message) -}}
        {%- if message.tool_calls -%}
            {%- set state.open = true -%}
            {%- set state.waiting = true -%}
            {%- set state.calls = message.tool_calls -%}
        {%- else -%}
            {{- '<turn|>\\n' -}}
            {%- set state.open = false -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if state.waiting -%}<|tool_response>
    {%- elif not state.open -%}
        {{- turn('model') -}}
        {%- if not thinks -%}{{ '<|channel>thought\\n<channel|>' }}{%- endif -%}
    {%- endif -%}
{%- endif -%}
"""

PLAIN_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}
{{ message['content'] }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""
"""One that knows no tools, no thoughts and no parts."""


def gemma_like(folder: Path, template: str | None = TEMPLATE) -> Tokenizer:
    """As the released tokenizer: spaces become marks, bytes are the fallback."""
    return _written(folder, json.loads((native_tokenizer(folder), folder / "tokenizer.json")[1].read_text()), template)


def byte_level(folder: Path, template: str | None = TEMPLATE) -> Tokenizer:
    """A byte-level BPE whose control tokens have small ids."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=CONTROL_TEXTS, initial_alphabet=alphabet, show_progress=False)
    texts = [
        "thought\nThe user asks for the weather.",
        "call:get_weather{city:Paris}",
        "It is sunny in Paris.",
        "<|turn >model <|>",
    ]
    backend.train_from_iterator([*texts, "user\nmodel\nsystem\n"] * 3, trainer)
    backend.add_tokens([AddedToken("\n\n", normalized=False)])  # an added token that is no control token, as Gemma 3 has them
    return _written(folder, json.loads(backend.to_str()), template)


def _written(folder: Path, state: dict[str, Any], template: str | None) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    settings = {
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast", "model_specific_special_tokens": CONTROL,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    return Tokenizer.from_folder(folder)
