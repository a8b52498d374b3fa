"""DiffusionGemmaModel: where text and engine meet."""

from diffusiongemma.engine.request import Mode
from diffusiongemma.generation.loaded import empty_transformer
from diffusiongemma.generation.model import DiffusionGemmaModel, constrained_params

__all__ = ["DiffusionGemmaModel", "Mode", "constrained_params", "empty_transformer"]
