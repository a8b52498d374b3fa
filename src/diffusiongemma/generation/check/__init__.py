"""Whether a checkpoint is what it says: headers, tokenizer and one denoising step against config.json and what is published."""

from diffusiongemma.generation.check.report import Report, Row, Verdict
from diffusiongemma.generation.check.run import check

__all__ = ["Report", "Row", "Verdict", "check"]
