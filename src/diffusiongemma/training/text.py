"""Text for training: a byte-level BPE of its own, and a mixture of tasks and code, bucketed by length.

A step's batch comes from one bucket, so that little of it is padding; which bucket, which tasks and which examples is a
pure function of (seed, step). Shapes: P prompts, T prompt tokens, L canvas.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from diffusiongemma.errors import TrainingError
from diffusiongemma.options import PromptOptions
from diffusiongemma.tasks.base import FIRST_EVAL_SEED, Example, ToolTask, example_rng
from diffusiongemma.tasks.generated import GeneratedTask
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.tasks.python_code import cut_hole, functions, infill_prompt, module_files
from diffusiongemma.tasks.reasoning import REASONING_TASKS, ReasoningTask
from diffusiongemma.tasks.useful import USEFUL_TASKS
from diffusiongemma.text import prompts as writing
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.tokenizer import Tokenizer as PromptTokenizer
from diffusiongemma.training.data import MARKS, SPECIALS, TOOL_TEMPLATE, TrainBatch
from diffusiongemma.training.recipe import Bucket, TextData

__all__ = ["SOURCES", "TextMixture"]

Progress = Callable[[int, int], None]
_PAD, _EOS, _BOS, _TURN_END = (SPECIALS.index(token) for token in ("<pad>", "<eos>", "<bos>", "<turn|>"))
_TASKS: dict[str, ReasoningTask | JsonExtract | GeneratedTask] = {
    **{task.name: task for task in REASONING_TASKS},
    JsonExtract.name: JsonExtract(),
    **{task.name: task for task in USEFUL_TASKS},
}
SOURCES = (*_TASKS, "infill-python", "python")
"""What a bucket may draw from: the tasks that make their own examples, holes in code as a prompt, and plain code."""
_MAX_TRIES = 200
_MAX_PROMPTS = 1 << 16
"""Numbers a step has for its examples, whatever its batch."""


class TextMixture:
    """Batches of (prompt, answer) token ids from a weighted mixture.

    Args:
        recipe: the data part of a recipe.
        seed: of the run, below ``FIRST_EVAL_SEED``.
        folder: where the tokenizer is kept between runs.
        progress: called with (done, of) while the code is read and the tokenizer made.
    """

    chat_template = TOOL_TEMPLATE

    Recipe = TextData

    def __init__(self, recipe: TextData, seed: int, folder: Path, progress: Progress) -> None:
        if seed >= FIRST_EVAL_SEED:
            raise TrainingError(f"the recipe's seed is {seed}; seeds from {FIRST_EVAL_SEED} are for evaluation, take one below")
        unknown = sorted({name for bucket in recipe.buckets for name in bucket.sources} - set(SOURCES))
        if unknown:
            raise TrainingError(f"the recipe draws from {', '.join(unknown)}; allowed: {', '.join(SOURCES)}")
        self._recipe, self._seed = recipe, seed
        progress(1, 2)
        self.tokenizer = self._load_or_train(folder / "tokenizer.json")
        progress(2, 2)
        self.canvas_length = recipe.canvas_length
        self._prompts = PromptTokenizer(self.tokenizer, ChatTemplate(self.chat_template, {}), folder)

    @cached_property
    def _code(self) -> list[str]:
        """Functions to learn from; reading them takes seconds, and not every mixture needs them."""
        held_out = set(functions(module_files(held_out=True)))
        return sorted(set(functions(module_files(held_out=False))) - held_out)

    def batch(self, step: int, prompts: int) -> TrainBatch:
        """The examples of one step, all from one bucket."""
        rng = example_rng("bucket", self._seed, step)
        bucket = rng.choices(self._recipe.buckets, [bucket.share for bucket in self._recipe.buckets])[0]
        names, weights = zip(*sorted(bucket.sources.items()), strict=True)
        rows = [self._row(rng.choices(names, weights)[0], bucket, _MAX_PROMPTS * step + i) for i in range(prompts)]
        prompt = np.full((prompts, bucket.prompt), _PAD)
        answer = np.full((prompts, bucket.answer), _PAD)
        keep = np.zeros((prompts, bucket.answer), bool)
        for i, (prompt_ids, answer_ids, hole) in enumerate(rows):
            prompt[i, bucket.prompt - len(prompt_ids) :] = prompt_ids
            answer[i, : len(answer_ids)] = answer_ids
            if hole:
                keep[i] = True
                keep[i, slice(*hole)] = False
        real = np.arange(bucket.answer) < np.array([[len(ids)] for _, ids, _ in rows])
        weight = np.where(real, 1.0, self._recipe.pad_weight).astype(np.float32)
        padding = np.array([bucket.prompt - len(ids) for ids, _, _ in rows])
        return TrainBatch(
            prompt_PT=torch.from_numpy(prompt),
            answer_PL=torch.from_numpy(answer),
            padding_P=torch.from_numpy(padding),
            weight_PL=torch.from_numpy(weight),
            pinned_PL=torch.from_numpy(keep),
            prompt_weight=bucket.prompt_weight,
        )

    def initial_embeddings(self, weight_VD: Tensor, generator: torch.Generator) -> None:
        """Nothing is known of a learnt vocabulary's structure."""

    def _row(self, name: str, bucket: Bucket, number: int) -> tuple[list[int], list[int], tuple[int, int] | None]:
        """Prompt ids, answer ids and the hole (None: the whole canvas) of an example that fits its bucket."""
        for tried in range(_MAX_TRIES):
            index = number * _MAX_TRIES + tried
            if name == "python":
                prompt, answer, hole = self._plain_code(bucket, index)
            else:
                example = self._example(name, index)
                assert example.answer is not None
                (prompt,) = writing.prompt_ids(self._prompts, example.prompt, options=_options(name, example))
                answer, hole = [*self._ids(example.answer), _TURN_END], None
                if len(answer) > bucket.answer == self.canvas_length:
                    # A longer answer: one of its canvases, after those before it.
                    begin = (
                        example_rng("canvas", self._seed, index).randrange(-(-len(answer) // self.canvas_length))
                        * self.canvas_length
                    )
                    prompt, answer = prompt + answer[:begin], answer[begin : begin + self.canvas_length]
            if len(prompt) <= bucket.prompt and len(answer) <= bucket.answer:
                return prompt, answer, hole
        raise TrainingError(f"{_MAX_TRIES} examples of {name} in a row exceed a bucket of {bucket.prompt} + {bucket.answer} tokens")

    def _example(self, name: str, index: int) -> Example:
        if name == "infill-python":
            rng = example_rng("train-infill", self._seed, index)
            prefix, hole, suffix = cut_hole(rng.choice(self._code), rng)
            return Example(infill_prompt(prefix, suffix), hole)
        return _TASKS[name].example(self._seed, index)

    def _plain_code(self, bucket: Bucket, index: int) -> tuple[list[int], list[int], tuple[int, int] | None]:
        """A function from somewhere in it on; half of the time with a hole, the rest of the canvas to be kept."""
        rng = example_rng("train-python", self._seed, index)
        ids = [_BOS, *self._ids(rng.choice(self._code)), _EOS]
        start = rng.randrange(1, max(2, len(ids) - 8))
        answer = ids[start : start + bucket.answer]
        hole = None
        if rng.random() < 0.5:
            begin = rng.randrange(len(answer))
            hole = (begin, min(len(answer), begin + rng.randint(1, bucket.answer // 2)))
        return ids[max(0, start - bucket.prompt) : start], answer, hole

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _load_or_train(self, path: Path) -> Tokenizer:
        if path.is_file():
            try:
                return Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises bare Exception for every damage
                raise TrainingError(f"{path} cannot be read ({error}); remove it, and it is made again") from error
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        # Digits one by one, as in Gemma: arithmetic on them can be learnt position by position.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._recipe.vocab_size,
            special_tokens=[*SPECIALS, *MARKS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._corpus(), trainer)
        part = path.with_suffix(".part")
        tokenizer.save(str(part))
        part.replace(path)
        return tokenizer

    def _corpus(self) -> Iterator[str]:
        """Text the vocabulary is learnt from: examples of every task, and a share of the code."""
        for name in sorted({name for bucket in self._recipe.buckets for name in bucket.sources} & set(_TASKS)):
            for index in range(self._recipe.tokenizer_examples):
                example = self._example(name, index)
                yield f"{example.prompt}\n{example.answer}"
        for _ in range(self._recipe.tokenizer_examples):
            yield "user\nmodel\nsystem\n(: string, : integer)"
        for index in range(self._recipe.tokenizer_functions):
            rng = example_rng("tokenizer", self._seed, index)
            yield infill_prompt(rng.choice(self._code), str(index))


def _options(name: str, example: Example) -> PromptOptions:
    """What stands in a prompt of a task beside the user's message."""
    task = _TASKS.get(name)
    return PromptOptions(tools=task.tools(example)) if isinstance(task, ToolTask) else PromptOptions()
