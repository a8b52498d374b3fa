"""What the sampler is told: defined with all other options (``options.sampling``), where nothing needs torch."""

from diffusiongemma.options.sampling import COLDEST, CanvasWindow, CommitRule, SamplingParams, Schedule, StopRule

__all__ = ["COLDEST", "CanvasWindow", "CommitRule", "SamplingParams", "Schedule", "StopRule"]
