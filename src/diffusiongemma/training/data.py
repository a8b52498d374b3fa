"""What the training loop wants of its data: batches that are a pure function of the step.

Shapes: P prompts, T prompt tokens, L canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from tokenizers import Tokenizer
from torch import Tensor

__all__ = ["CHAT_TEMPLATE", "MARKS", "MASK", "SPECIALS", "STOP_IDS", "TOOL_TEMPLATE", "HeldOut", "TrainBatch", "TrainData"]

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")
"""The first token ids of every checkpoint we train."""
MASK = "<mask>"
"""The token of pure noise, where the diffusion process has one; it comes after all others."""
STOP_IDS = (SPECIALS.index("<eos>"), SPECIALS.index("<turn|>"))
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
MARKS = ("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
"""The tokens of tools, after the specials of a checkpoint that is taught to call them."""
TOOL_TEMPLATE = (
    "{% macro value(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}"
    "{% for k, w in v | dictsort %}{{ k }}:{{ value(w) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}"
    "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
    "<bos>{% if tools %}<|turn>system\n{% for tool in tools %}<|tool>{{ tool.function.name }}("
    "{% for name, schema in ((tool.function.parameters or {}).properties or {}).items() %}{{ name }}: {{ schema.type or 'any' }}"
    "{% if not loop.last %}, {% endif %}{% endfor %})"
    "{% if tool.function.description %} {{ tool.function.description }}{% endif %}<tool|>{% endfor %}<turn|>\n{% endif %}"
    "{% for message in messages %}<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] or '' }}{% for call in message['tool_calls'] or [] %}<|tool_call>call:{{ call.function.name }}"
    "{{ value(call.function.arguments) }}<tool_call|>{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
"""``CHAT_TEMPLATE`` with declarations of tools, ``name(argument: type, ...) description``, and calls in the model's own markup."""


@dataclass(frozen=True)
class TrainBatch:
    """The examples of one step.

    Attributes:
        prompt_PT: ``[P, T]`` int64, padded on the left.
        answer_PL: ``[P, L]`` int64, the clean canvases.
        padding_P: ``[P]`` int64, pad tokens before each prompt; None: none anywhere.
        weight_PL: ``[P, L]`` float32, weight of each position in the losses; None: all 1.
        pinned_PL: ``[P, L]`` bool, positions that every other canvas of a prompt keeps clean, as pins do; None: none.
        prompt_weight: weight of the prompts' own tokens in the causal loss.
    """

    prompt_PT: Tensor
    answer_PL: Tensor
    padding_P: Tensor | None = None
    weight_PL: Tensor | None = None
    pinned_PL: Tensor | None = None
    prompt_weight: float = 0.0

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@runtime_checkable
class HeldOut(Protocol):
    """Data with examples that are not learnt.

    Attributes:
        held_out: those.
    """

    held_out: Sequence[Any]

    def batch_of(self, examples: Sequence[Any], generator: torch.Generator) -> TrainBatch:
        """A batch of given examples."""


class TrainData(Protocol):
    """Where batches come from.

    Attributes:
        tokenizer: ``SPECIALS`` are its first tokens.
        canvas_length: of the checkpoint.
        chat_template: jinja text of the checkpoint.
    """

    tokenizer: Tokenizer
    canvas_length: int
    chat_template: str

    def batch(self, step: int, prompts: int) -> TrainBatch:
        """The examples of a step; nothing but (seed, step) decides them."""

    def initial_embeddings(self, weight_VD: Tensor, generator: torch.Generator) -> None:
        """Give the fresh embedding table the structure the data has, if any."""
