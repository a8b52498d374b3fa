"""The sampler: pure functions on tensors. Knows torch and kernels, never the model.

``new_canvas -> (step)* -> Canvas.argmax_ids_BL``: a step turns the statistics of the canvas's distributions into the next canvas.
"""

from diffusiongemma.diffusion.batch import BatchParams, PerRow
from diffusiongemma.diffusion.canvas import Canvas, new_canvas
from diffusiongemma.diffusion.params import COLDEST, CanvasWindow, CommitRule, SamplingParams
from diffusiongemma.diffusion.step import accept, committed, relevant, step, temperature

__all__ = [
    "COLDEST",
    "BatchParams",
    "Canvas",
    "CanvasWindow",
    "CommitRule",
    "PerRow",
    "SamplingParams",
    "accept",
    "committed",
    "new_canvas",
    "relevant",
    "step",
    "temperature",
]
