"""DiffusionGemmaModel: where text and engine meet."""

from diffusiongemma.api.loaded import empty_transformer
from diffusiongemma.api.model import DiffusionGemmaModel, held_params
from diffusiongemma.engine.request import Mode

__all__ = ["DiffusionGemmaModel", "Mode", "empty_transformer", "held_params"]
