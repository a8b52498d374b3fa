"""The model in programs of asyncio: the answers of generate and stream, many at a time, given up when nobody waits."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.engine.events import Commit, Done, Draft
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation import DiffusionGemmaModel, asynchronous
from tests.tiny import tiny_model, tiny_transformer

OPTIONS: dict[str, Any] = {"seed": 1, "num_diffusion_steps": 4, "max_tokens": 20}


@pytest.fixture
def model(tmp_path: Path) -> DiffusionGemmaModel:
    return tiny_model(tmp_path, tiny_transformer(scale=0.4))


def test_the_answers_are_those_of_generate(model: DiffusionGemmaModel) -> None:
    async def ask() -> Any:
        return (
            await model.agenerate("abc", **OPTIONS),
            await model.agenerate(["abc", "xy"], **OPTIONS),
            await model.agenerate("abc", n=2, **OPTIONS),
            await model.agenerate(["abc", "xy"], best_of=2, **OPTIONS),
        )

    one, many, several, best = asyncio.run(ask())
    assert one.token_ids == model.generate("abc", **OPTIONS).token_ids
    assert [each.token_ids for each in many] == [each.token_ids for each in model.generate(["abc", "xy"], **OPTIONS)]
    assert [each.token_ids for each in several] == [each.token_ids for each in model.generate("abc", n=2, **OPTIONS)]
    assert [each.token_ids for each in best] == [each.token_ids for each in model.generate(["abc", "xy"], best_of=2, **OPTIONS)]


def test_calls_at_the_same_time_share_the_passes(model: DiffusionGemmaModel) -> None:
    async def ask() -> tuple[list[Any], int]:
        answers = await asyncio.gather(*(model.agenerate("abc", **(OPTIONS | {"seed": seed})) for seed in range(20)))
        return answers, asynchronous._engine_of(model).stats.passes

    answers, passes = asyncio.run(ask())
    assert [one.token_ids for one in answers] == [
        model.generate("abc", **(OPTIONS | {"seed": seed})).token_ids for seed in range(20)
    ]
    alone = sum(one.usage.denoising_steps + one.usage.commit_passes for one in answers)
    assert passes < alone / 2


def test_a_stream(model: DiffusionGemmaModel) -> None:
    async def watch() -> list[Any]:
        return [event async for event in model.astream("abc", **OPTIONS)]

    events = asyncio.run(watch())
    plain = list(model.stream("abc", **OPTIONS))
    assert [type(event) for event in events] == [type(event) for event in plain]
    assert {type(event) for event in events} == {Draft, Commit, Done}
    assert events[-1].result.token_ids == plain[-1].result.token_ids


def test_what_nobody_waits_for_is_given_up(model: DiffusionGemmaModel) -> None:
    async def leave() -> tuple[int, int]:
        long = OPTIONS | {"max_tokens": 60, "num_diffusion_steps": 5000, "early_stop": False}
        task = asyncio.create_task(model.agenerate(["abc"] * 4, **long))
        stats = asynchronous._engine_of(model).stats
        while not stats.running and not task.done():
            await asyncio.sleep(0.01)
            stats = asynchronous._engine_of(model).stats
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in model.astream("abc", **long):
            break
        for _ in range(500):
            stats = asynchronous._engine_of(model).stats
            if not stats.running and not stats.waiting:
                break
            await asyncio.sleep(0.01)
        return stats.running, stats.waiting

    assert asyncio.run(leave()) == (0, 0)


def test_errors_are_the_same(model: DiffusionGemmaModel) -> None:
    with pytest.raises(InputError, match="empty"):
        asyncio.run(model.agenerate(" ", **OPTIONS))
    with pytest.raises(OptionError, match="num_diffusion_steps"):
        asyncio.run(model.agenerate("abc", num_diffusion_steps=0))
    with pytest.raises(OptionError, match="n and best_of"):
        asyncio.run(model.agenerate("abc", n=2, best_of=2))


def test_the_thread_ends_with_the_model(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(scale=0.4))
    before = threading.active_count()
    asyncio.run(model.agenerate("abc", **OPTIONS))
    engine = asynchronous._engine_of(model)
    assert any(thread.name == "engine" for thread in threading.enumerate())
    del model
    gc.collect()
    engine._thread.join(10)
    assert not engine._thread.is_alive() and threading.active_count() <= before + 1
