"""Load a checkpoint of any size, answer a prompt, denoise one canvas: seconds, and the most memory it took.

python tools/full_size.py FOLDER|FILE.gguf [--steps 3] [--quantize int8] [--threads 2]

Resident memory counts the pages of the mapped file too. A random checkpoint writes noise; what is measured is the computing.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.engine.events import Commit, Draft


def peak() -> float:
    """Most resident memory so far, in GB (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def size_of(path: Path) -> float:
    """GB of a file, or of all files of a folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file()) / 1e9


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps of the canvas")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--soft-top-k", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    began = time.perf_counter()
    model = DiffusionGemmaModel.from_pretrained(options.checkpoint, quantize=options.quantize)
    loaded, after_load = time.perf_counter(), peak()
    result: dict[str, Any] = {
        "size_gb": round(size_of(Path(options.checkpoint)), 2), "load_s": round(loaded - began, 1), "peak_after_load_gb": round(after_load, 2)
    }  # fmt: skip
    sampling = {} if options.soft_top_k is None else {"soft_top_k": options.soft_top_k}
    times = [time.perf_counter()]
    prompt = "".join(chr(0x4E00 + at) for at in range(options.prompt_tokens))
    tokens = model.config.canvas_length
    for event in model.stream(
        prompt, raw=True, seed=1, num_diffusion_steps=options.steps, max_tokens=tokens, early_stop=False, **sampling
    ):
        if isinstance(event, Draft):
            times.append(time.perf_counter())
            print(f"step {event.step}: {times[-1] - times[-2]:.1f} s, peak {peak():.2f} GB", flush=True)
        elif isinstance(event, Commit):
            break
    steps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    result |= {
        "prompt_and_first_step_s": round(steps[0], 1),
        "step_s": [round(step, 1) for step in steps[1:]],
        "peak_gb": round(peak(), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
