"""DiffusionGemmaModel: where text and engine meet."""

from diffusiongemma.engine.request import Mode
from diffusiongemma.generation.loading import empty_transformer
from diffusiongemma.generation.model import DiffusionGemmaModel
from diffusiongemma.generation.requests import AnyMode, ReplyOptions, constrained_params

__all__ = ["AnyMode", "DiffusionGemmaModel", "Mode", "ReplyOptions", "constrained_params", "empty_transformer"]
