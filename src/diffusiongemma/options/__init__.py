"""Everything a caller may choose about an answer, said once: what an option is, the sampling parameters, how a prompt is written.

Knows the errors alone, so that the command line has it without loading torch.
"""

from diffusiongemma.options.option import Option, given, options_of, unknown_option
from diffusiongemma.options.prompt import REASONING_EFFORTS, PromptKeywords, PromptOptions
from diffusiongemma.options.sampling import (
    COLDEST,
    MOST_DRAWN,
    OWN_FIELD,
    OWN_SAMPLING,
    CanvasWindow,
    CommitRule,
    DenoisingOptions,
    SamplingOptions,
    SamplingParams,
    Schedule,
    StopRule,
)

__all__ = [
    "COLDEST",
    "MOST_DRAWN",
    "OWN_FIELD",
    "OWN_SAMPLING",
    "REASONING_EFFORTS",
    "CanvasWindow",
    "CommitRule",
    "DenoisingOptions",
    "Option",
    "PromptKeywords",
    "PromptOptions",
    "SamplingOptions",
    "SamplingParams",
    "Schedule",
    "StopRule",
    "given",
    "options_of",
    "unknown_option",
]
