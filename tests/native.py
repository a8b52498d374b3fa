"""A checkpoint in the released model's way: its control tokens, byte fallback, a template that knows thoughts and tools."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.text.tokenizer import Tokenizer
from tests.tiny import tiny_config, tiny_transformer

CONTROL = {
    "std_token": "<|tool>", "etd_token": "<tool|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "escape_token": '<|"|>', "think_token": "<|think|>",
    "soc_token": "<|channel>", "eoc_token": "<channel|>", "sot_token": "<|turn>", "eot_token": "<turn|>",
}  # fmt: skip
"""Names of the released tokenizer_config.json and their texts."""

TEMPLATE = """\
{%- macro value(it) -%}
{%- if it is string -%}<|"|>{{ it }}<|"|>
{%- elif it is none -%}null
{%- elif it is boolean -%}{{ 'true' if it else 'false' }}
{%- elif it is mapping -%}{ {{- fields(it) -}} }
{%- elif it is sequence -%}[{% for one in it %}{{ value(one) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else -%}{{ it }}{%- endif -%}
{%- endmacro -%}
{%- macro fields(it) -%}
{%- for key, one in it | dictsort -%}{{ key }}:{{ value(one) }}{{ ',' if not loop.last }}{%- endfor -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set rest = messages -%}
{%- if enable_thinking or tools or messages[0].role in ('system', 'developer') -%}
<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}
{%- if messages[0].role in ('system', 'developer') -%}{{ messages[0].content }}{%- set rest = messages[1:] -%}{%- endif -%}
{%- for tool in tools or [] -%}
<|tool>declaration:{{ tool.function.name }}{ {{- fields(tool.function) -}} }<tool|>
{%- endfor -%}
<turn|>
{% endif -%}
{%- for message in rest -%}
{%- set before = rest[loop.index0 - 1].role if loop.index0 else '' -%}
{%- if message.role == 'tool' -%}
{%- set of = namespace(name=message.name or 'unknown') -%}
{%- for one in rest -%}{%- for call in one.tool_calls or [] if call.id == message.tool_call_id -%}
{%- set of.name = call.function.name -%}
{%- endfor -%}{%- endfor -%}
<|tool_response>response:{{ of.name }}{value:{{ value(message.content) }}}<tool_response|>
{%- else -%}
{%- if before != 'tool' -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% endif -%}
{%- for call in message.tool_calls or [] -%}
<|tool_call>call:{{ call.function.name }}{ {{- fields(call.function.arguments) -}} }<tool_call|>
{%- endfor -%}
{{- message.content or '' -}}
{%- if not message.tool_calls -%}
<turn|>
{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and rest[-1].role != 'tool' -%}
<|turn>model
{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}
{%- endif -%}
"""


def native_tokenizer(folder: Path) -> Tokenizer:
    """About 700 tokens: control tokens first, bytes, characters and their merges."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *CONTROL.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    texts = ["call:weather{city:Paris,days:3}", "thought\nLet me look at the weather.", "It is sunny in Paris, 21 degrees.", "éà"]
    backend.train_from_iterator([*texts, "".join(map(chr, range(32, 127))), "\n\t"], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][: len(special)]  # bytes are plain tokens, as in the released file
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "model_specific_special_tokens": CONTROL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return Tokenizer.from_folder(folder)


def native_model(folder: Path, seed: int = 0, *, positions: int = 4096, canvas: int = 32, **options: Any) -> DiffusionGemmaModel:
    """Random weights on that tokenizer; it stops at ``<eos>`` and ``<turn|>``."""
    tokenizer = native_tokenizer(folder)
    size = tokenizer.vocab_size
    config = tiny_config(canvas, vocab_size=size, max_position_embeddings=positions)
    stop_ids = tuple(tokenizer.encode("<eos><turn|>"))
    defaults = SamplingParams(**{"max_tokens": 64, "num_diffusion_steps": 3} | options)
    return DiffusionGemmaModel(tiny_transformer(config, seed=seed), tokenizer, defaults, stop_ids)
