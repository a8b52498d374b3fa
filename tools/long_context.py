"""What a long context costs: bytes of the cache and milliseconds of a denoising step, and of the path before windows were kept.

python tools/long_context.py --lengths 4096,32768,131072 --layers 6
python tools/long_context.py --lengths 4096,32768,131072 --layers 6 --base ef82527
python tools/long_context.py --prompt 131072 --layers 2

Random weights of the 26B's attention (16 heads; 8 key-value heads of 256 and a window of 1024 in five layers of six, 2 of 512 in the
sixth), with a small feed-forward part and vocabulary, in bfloat16. Steps are timed after a context of random keys and values, so that
nothing need be encoded; ``--prompt`` encodes one. ``--base`` measures a commit of this repository too, in turns, each in its own process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CANVAS = 256
TEXT = {
    "vocab_size": 1024, "hidden_size": 2816, "intermediate_size": 64, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 2, "sliding_window": 1024,
    "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16, "max_position_embeddings": 262_144,
    "use_bidirectional_attention": "vision",
}  # fmt: skip


def model_of(layers: int) -> Any:
    """A random model; the last layer is always a full one."""
    import torch

    from diffusiongemma.generation import empty_transformer
    from diffusiongemma.model.config import ModelConfig

    kinds = ["full_attention" if at % 6 == 5 or at == layers - 1 else "sliding_attention" for at in range(layers)]
    text = {**TEXT, "num_hidden_layers": layers, "layer_types": kinds}
    config = ModelConfig.from_dict({"model_type": "diffusion_gemma", "canvas_length": CANVAS, "text_config": text})
    model = empty_transformer(config, torch.bfloat16, torch.device("cpu"))
    torch.manual_seed(0)
    for weight in model.state_dict().values():
        weight.fill_(1.0) if weight.ndim < 2 else weight.normal_(0.0, weight.shape[-1] ** -0.5)
    return model


def peak() -> int:
    """Most resident memory so far, in bytes (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def filled(model: Any, length: int) -> tuple[Any, int]:
    """A cache that holds so many random tokens, and its bytes."""
    import torch

    from diffusiongemma.model.cache import KVCache

    text, chunk = model.config.text, 128
    cache = KVCache(text, 1, length + CANVAS, torch.bfloat16, torch.device("cpu"))
    pieces = [torch.randn(1, chunk, layer.num_key_value_heads, layer.head_dim, dtype=torch.bfloat16) for layer in text.layers]
    for _ in range(length // chunk):
        if hasattr(cache, "rows"):
            for at, piece in enumerate(pieces):
                cache.rows[0].extended(at, piece, piece, keep=True)
            cache.rows[0].advance(chunk)
        else:
            cache.reserve(chunk)
            for at, piece in enumerate(pieces):
                cache.append(at, piece, piece)
            cache.advance(torch.tensor([chunk]))
    return cache, cache.bytes


def steps(layers: int, lengths: list[int], repeat: int) -> list[dict[str, Any]]:
    """Bytes and milliseconds a pass over a canvas after each length of context."""
    import torch

    model, result = model_of(layers), []
    ids = torch.randint(0, TEXT["vocab_size"], (1, CANVAS))
    with torch.inference_mode():
        for length in lengths:
            cache, kept = filled(model, length)
            if hasattr(model, "canvas_metadata"):
                context, metadata = cache.rows[0], model.canvas_metadata(cache.rows[0], CANVAS)
            else:
                context, metadata = cache, model.view(cache, CANVAS)
            times = []
            for _ in range(repeat + 1):
                began = time.perf_counter()
                model.denoise_rows([ids], [context], [None], [metadata])
                times.append(time.perf_counter() - began)
            result.append({"context": length, "cache_bytes": kept, "step_ms": 1000 * statistics.median(times[1:])})
            del cache, context, metadata
    return result


def prompt(layers: int, length: int, denoising: int) -> dict[str, Any]:
    """Encode a prompt and denoise a canvas after it through the engine, as ``generate`` does."""
    import torch
    from tokenizers import Tokenizer as Words
    from tokenizers import models

    from diffusiongemma.engine.offline import OfflineEngine
    from diffusiongemma.engine.events import Commit
    from diffusiongemma.engine.request import Request
    from diffusiongemma.model.cache import KVCache, prefill_chunk
    from diffusiongemma.diffusion import SamplingParams
    from diffusiongemma.text.tokenizer import Tokenizer

    model = model_of(layers)
    torch.manual_seed(1)
    ids = torch.randint(1, TEXT["vocab_size"], (length,)).tolist()
    params = SamplingParams(num_diffusion_steps=denoising, max_tokens=CANVAS, early_stop=False, seed=1)
    with tempfile.TemporaryDirectory() as name:
        words = Words(models.WordLevel({"<unk>": 0, **{f"w{at}": at for at in range(1, TEXT["vocab_size"])}}, unk_token="<unk>"))
        words.save(str(Path(name) / "tokenizer.json"))
        tokenizer = Tokenizer.from_folder(Path(name))
    before, began, encoded = peak(), time.perf_counter(), 0.0
    bound = KVCache.bytes_of(
        model.config.text, length + CANVAS, torch.bfloat16, canvas=CANVAS, chunk=prefill_chunk(torch.device("cpu"))
    )
    for event in OfflineEngine(model, tokenizer).run([Request(prompt=ids, params=params, drafts=True)]):
        encoded = encoded or time.perf_counter() - began
        if isinstance(event, Commit):
            break
    took = time.perf_counter() - began
    return {
        "context": length, "encode_and_first_step_s": encoded, "all_s": took, "steps": denoising, "cache_bound_bytes": bound,
        "peak_above_weights_bytes": peak() - before,
    }  # fmt: skip


def child(source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a source tree in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    command = [sys.executable, __file__, "--child", "--layers", str(options.layers), "--repeat", str(options.repeat)]
    run = subprocess.run([*command, "--lengths", options.lengths], env=environment, stdout=subprocess.PIPE, check=True)
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4096,32768,131072", help="tokens of context, multiples of 128")
    parser.add_argument("--layers", type=int, default=6, help="of them, every sixth and the last are full")
    parser.add_argument("--repeat", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--prompt", type=int, help="encode a prompt of so many tokens and denoise one canvas instead")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps after --prompt")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prompt:
        print(json.dumps(prompt(options.layers, options.prompt, options.steps), indent=2))
        return
    if options.child:
        print(json.dumps(steps(options.layers, [int(length) for length in options.lengths.split(",")], options.repeat)))
        return
    result = {"here": child(ROOT, options)}
    if options.base:
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name) / "base"
            subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", tree, options.base], check=True)
            try:
                result[options.base] = child(tree, options)
            finally:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    for name, rows in result.items():
        for row in rows:
            print(
                f"{name:>10}  {row['context']:>8,} tokens  {row['cache_bytes'] / 2**20:>9,.1f} MiB  {row['step_ms']:>9,.1f} ms a step"
            )


if __name__ == "__main__":
    main()
