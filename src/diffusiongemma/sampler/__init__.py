"""The sampler: pure functions on tensors. Knows torch and kernels, never the model.

``new_canvas -> (step)* -> Canvas.best_BL``: a step turns logits into the next canvas.
"""

from diffusiongemma.sampler.canvas import Canvas, new_canvas
from diffusiongemma.sampler.draws import Stream, gumbel, position_keys, random_ids
from diffusiongemma.sampler.params import CommitRule, SamplingParams
from diffusiongemma.sampler.step import accept, committed, entropy, relevant, shape_logits, step, temperature

__all__ = [
    "Canvas",
    "CommitRule",
    "SamplingParams",
    "Stream",
    "accept",
    "committed",
    "entropy",
    "gumbel",
    "new_canvas",
    "position_keys",
    "random_ids",
    "relevant",
    "shape_logits",
    "step",
    "temperature",
]
