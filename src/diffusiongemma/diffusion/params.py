"""What the sampler is told: defined with all other options (``options.sampling``), where nothing needs torch."""

from diffusiongemma.options.sampling import (
    COLDEST,
    OWN_FIELD,
    AcceptRule,
    CanvasWindow,
    CommitRule,
    SamplingParams,
    Schedule,
    StopRule,
)

__all__ = ["COLDEST", "OWN_FIELD", "AcceptRule", "CanvasWindow", "CommitRule", "SamplingParams", "Schedule", "StopRule"]
