"""The built-in model as one whose checkpoint marks neither thoughts nor calls, and whose template knows no tools."""

import json
import shutil
from pathlib import Path

import diffusiongemma
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.text.markup import _LITERALS
from diffusiongemma.text.tokenizer import Tokenizer

NANO = Path(diffusiongemma.__file__).parent / "checkpoints" / "nano"
TEMPLATE = """\
<bos>{% for message in messages %}<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def unmarked_tokenizer(folder: Path) -> Tokenizer:
    """nano's, in a folder of its own."""
    shutil.copy(NANO / "tokenizer.json", folder)
    settings = json.loads((NANO / "tokenizer_config.json").read_text())
    nameless = dict.fromkeys(name for name, _ in _LITERALS.values())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | nameless))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer.from_folder(folder)


def unmarked_model(folder: Path) -> DiffusionGemmaModel:
    """nano with that tokenizer."""
    nano = DiffusionGemmaModel.from_pretrained("nano")
    return DiffusionGemmaModel(nano.transformer, unmarked_tokenizer(folder), nano.defaults, nano.stop_ids)
