"""Processor time of an engine's step with rows that are alike, or each with settings of its own.

    python tools/mixed_settings.py one|alike|settings|lengths [STEPS]

``nano``, 8 rows (``one``: 1), one thread; the time of the engine's own thread, so that other work on the machine counts little. To
compare with another commit, run it in turns with that one's ``src`` on PYTHONPATH.
"""

import resource
import sys
import time
from statistics import median
from typing import Any

import torch

from diffusiongemma.engine.engine import Engine
from diffusiongemma.generation import DiffusionGemmaModel

ENDLESS: dict[str, Any] = {"num_diffusion_steps": 100_000, "early_stop": False, "max_tokens": 64}
SETTINGS: list[dict[str, Any]] = [
    {}, {"entropy_bound": 0.3}, {"t_max": 1.0}, {"schedule": "cosine"},
    {"stop_rule": "answer"}, {"commit": "accepted"}, {"stability": 3}, {"soft_top_k": 8},
]  # fmt: skip


def main(kind: str, steps: int = 30) -> None:
    """Print the median and the least, in milliseconds, and the page faults of the process."""
    torch.set_num_threads(1)
    model = DiffusionGemmaModel.from_pretrained("nano")
    engine = Engine(model.transformer, model.tokenizer)
    for row in range(1 if kind == "one" else len(SETTINGS)):
        options = ENDLESS | (SETTINGS[row] if kind in ("settings", "lengths") else {})
        options |= {"canvas_length": 64 - 4 * row} if kind == "lengths" else {}
        engine.add(*model.requests("Write a line about the sea.", seed=row, **options), row)
    times = []
    for _ in range(5 + steps):
        began = time.thread_time()
        list(engine.step())
        times.append(1000 * (time.thread_time() - began))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(f"{kind:8} median {median(times[5:]):.1f} ms, least {min(times[5:]):.1f} ms, {faults:,} page faults")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
