"""The sampler: pure functions on tensors. Knows torch and kernels, never the model.

``new_canvas -> (step)* -> Canvas.argmax_ids_BL``: a step turns the statistics of the canvas's distributions into the next canvas.
"""

from diffusiongemma.diffusion.batch import BatchParams, PerRow
from diffusiongemma.diffusion.canvas import Canvas, new_canvas
from diffusiongemma.diffusion.process import Absorbing, Corrupted, NoiseProcess, Uniform, make_process, register_process
from diffusiongemma.diffusion.rules import accept, committed, relevant
from diffusiongemma.diffusion.schedule import noise_levels, temperature
from diffusiongemma.diffusion.step import step
from diffusiongemma.options.sampling import COLDEST, CanvasWindow, CommitRule, SamplingParams

__all__ = [
    "COLDEST",
    "Absorbing",
    "BatchParams",
    "Canvas",
    "CanvasWindow",
    "CommitRule",
    "Corrupted",
    "NoiseProcess",
    "PerRow",
    "SamplingParams",
    "Uniform",
    "accept",
    "committed",
    "make_process",
    "new_canvas",
    "noise_levels",
    "register_process",
    "relevant",
    "step",
    "temperature",
]
