"""One step of the sampler, against loops that say the same thing slowly."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.diffusion import (
    Absorbing,
    BatchParams,
    Canvas,
    NoiseProcess,
    SamplingParams,
    Uniform,
    committed,
    new_canvas,
    relevant,
    temperature,
)
from diffusiongemma.diffusion import step as step_of
from diffusiongemma.diffusion.rules import above_probability, surest, within_entropy
from diffusiongemma.kernels import RngPurpose, entropy, statistics

LENGTH, VOCABULARY = 8, 11
UNIFORM, ABSORBING = Uniform(VOCABULARY), Absorbing(VOCABULARY, mask_token_id=10)
entropies = st.lists(st.floats(0, 3, width=32), min_size=1, max_size=12)


def canvas(rows: int = 3, pins: Tensor | None = None, stability: int = 1, process: NoiseProcess = UNIFORM) -> Canvas:
    seeds = torch.arange(rows) + 5
    return new_canvas(seeds, torch.zeros_like(seeds), LENGTH, process, stability, pins)


def logits(rows: int = 3, seed: int = 0, sharp: float = 3.0) -> Tensor:
    return sharp * torch.randn(rows, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def batch(*params: SamplingParams, rows: int = 1, stop_ids: tuple[int, ...] = ()) -> BatchParams:
    each = [*params] * rows
    return BatchParams.of(each, torch.device("cpu"), [stop_ids] * len(each))


def step(
    state: Canvas,
    logits_BLV: Tensor,
    params: SamplingParams | BatchParams,
    stop_ids: tuple[int, ...] = (),
    process: NoiseProcess = UNIFORM,
) -> Canvas:
    """A step from logits, through the plain statistics."""
    each = params if isinstance(params, BatchParams) else batch(params, rows=len(state.step_B), stop_ids=stop_ids)
    shaped = logits_BLV / temperature(state.step_B, each)[:, None, None]
    return step_of(state, statistics(shaped, state.keys(RngPurpose.DRAW), None), each, process)


@given(entropies, st.floats(0.01, 4))
def test_acceptance_is_the_naive_loop(values: list[float], bound: float) -> None:
    row = torch.tensor(values, dtype=torch.float64)
    got = within_entropy(row[None], torch.ones(1, len(values), dtype=torch.bool), torch.tensor([bound], dtype=torch.float64))[0]
    before = 0.0
    expected = set()
    for i in sorted(range(len(values)), key=lambda i: (values[i], i)):
        if before > bound + 1e-9:
            break
        if before <= bound - 1e-9 or not before:
            expected.add(i)
        elif abs(before - bound) < 1e-9:  # rounding decides; take what was decided
            expected |= {i} & set(got.nonzero().flatten().tolist())
        before += values[i]
    assert set(got.nonzero().flatten().tolist()) == expected
    assert got.any()


def test_pinned_positions_are_neither_accepted_nor_counted() -> None:
    uncertain = torch.tensor([[9.0, 0.05, 0.06, 0.2]])
    opened = torch.tensor([[False, True, True, True]])
    assert within_entropy(uncertain, opened, torch.tensor([0.1])).tolist() == [[False, True, True, False]]
    assert within_entropy(torch.tensor([[0.0, 2.0, 3.0, 2.5]]), opened, torch.tensor([0.1])).tolist() == [
        [False, True, False, False]
    ]


def test_a_confident_position_is_accepted_and_the_most_confident_in_any_case() -> None:
    probability = torch.tensor([[0.99, 0.9, 0.3, 0.95], [0.99, 0.2, 0.3, 0.1], [0.5, 0.5, 0.5, 0.5]])
    opened = torch.tensor([[False, True, True, True], [False, True, True, True], [False] * 4])
    accepted = above_probability(probability, opened, torch.tensor([0.9, 0.9, 0.1]))
    assert accepted.tolist() == [[False, True, False, True], [False, False, True, False], [False] * 4]


def test_so_many_of_the_surest_are_accepted() -> None:
    uncertain, opened = torch.tensor([[0.0, 0.5, 0.2, 0.5]] * 3), torch.tensor([[False, True, True, True]] * 3)
    accepted = surest(uncertain, opened, torch.tensor([1, 2, 9]))
    assert accepted.tolist() == [[False, False, True, False], [False, True, True, False], [False, True, True, True]]


@pytest.mark.parametrize("process", [UNIFORM, ABSORBING])
@pytest.mark.parametrize(("count", "steps", "expected"), [(2, 9, [2, 4, 6, 7, 7]), (None, 3, [3, 5, 7])])
def test_the_count_rule_adds_so_many_a_step_whether_or_not_they_are_kept(
    process: NoiseProcess, count: int | None, steps: int, expected: list[int]
) -> None:
    pins = torch.full((1, LENGTH), -1)
    pins[0, 3] = 4
    state, params = canvas(1, pins, process=process), SamplingParams(accept="count", accept_count=count, num_diffusion_steps=steps)
    for at, total in enumerate(expected):
        flat = logits(1, seed=at, sharp=0.5)
        flat[..., 10] = -100.0  # never the mask
        state = step(state, flat, params, process=process)
        assert int((state.accepted_BL & ~state.pinned_BL).sum()) == total


def test_the_accept_rule_is_the_rows_own() -> None:
    """Distributions of one certain token and many even ones: a rule that asks for certainty takes fewer than a generous one."""
    made = logits(1, sharp=1.0)
    made[0, 2, 5] = 50.0
    asked = {
        "accept_probability": SamplingParams(accept="confidence", accept_probability=0.99),
        "entropy_bound": SamplingParams(entropy_bound=100.0),
        "accept_count": SamplingParams(accept="count", accept_count=3),
    }
    accepted = [int(step(canvas(1), made, params).accepted_BL.sum()) for params in asked.values()]
    assert accepted == [1, LENGTH, 3]
    together = step(canvas(3), made.expand(3, -1, -1), batch(*asked.values()))
    assert together.accepted_BL.sum(-1).tolist() == accepted


def test_entropy_is_torchs() -> None:
    shaped = logits()
    assert torch.allclose(entropy(shaped), torch.distributions.Categorical(logits=shaped).entropy(), atol=1e-5)


def test_temperature_falls_from_t_max_and_ends_above_t_min() -> None:
    params = SamplingParams(num_diffusion_steps=4, t_min=0.4, t_max=0.8)
    assert temperature(torch.arange(4), batch(params, rows=4)).tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_the_cosine_schedule_has_the_same_ends_and_middle() -> None:
    params = SamplingParams(num_diffusion_steps=4, t_min=0.4, t_max=0.8, schedule="cosine")
    expected = [0.8, 0.4 + 0.2 * (1 + 2**-0.5), 0.6, 0.4 + 0.2 * (1 - 2**-0.5)]
    assert temperature(torch.arange(4), batch(params, rows=4)).tolist() == pytest.approx(expected)


def test_a_step_keeps_what_it_accepts_and_renoises_the_rest() -> None:
    before = canvas()
    after = step(before, logits(), SamplingParams(entropy_bound=0.5))
    assert after.accepted_BL.any(-1).all() and not after.accepted_BL.all()
    assert torch.equal(after.argmax_ids_BL, logits().argmax(-1))
    assert after.step_B.tolist() == [1, 1, 1]
    # What is accepted depends on the draw of this step; what is not is noise with a key of its own.
    other = step(replace(before, step_B=before.step_B + 1), logits(), SamplingParams(entropy_bound=0.5))
    assert (after.noisy_ids_BL != other.noisy_ids_BL).any()
    # The state that went in is untouched.
    assert torch.equal(before.noisy_ids_BL, canvas().noisy_ids_BL) and before.step_B.tolist() == [0, 0, 0]


@given(st.integers(0, 2**63 - 1), st.integers(1, 6), st.floats(0.01, 5))
def test_pins_never_change(seed: int, steps: int, sharp: float) -> None:
    pins = torch.full((1, LENGTH), -1)
    pins[0, 2], pins[0, 5] = 3, 0
    state = new_canvas(torch.tensor([seed]), torch.tensor([0]), LENGTH, UNIFORM, 1, pins)
    for i in range(steps):
        state = step(state, logits(1, seed=i, sharp=sharp), SamplingParams(num_diffusion_steps=steps))
        for tokens in (state.noisy_ids_BL, state.argmax_ids_BL):
            assert tokens[0, 2] == 3 and tokens[0, 5] == 0
        assert state.entropy_BL[0, 2] == 0 and state.accepted_BL[0, 2]


def test_what_an_absorbing_step_keeps_stays_and_is_committed_and_the_rest_is_masked() -> None:
    pins = torch.full((3, LENGTH), -1)
    pins[:, 4] = 6
    state, seen = canvas(3, pins, process=ABSORBING), []
    assert (state.noisy_ids_BL == torch.where(pins >= 0, pins, 10)).all() and torch.equal(state.open, pins < 0)
    params = SamplingParams(entropy_bound=0.5, confidence=1e-6)
    while not state.done_B.all():
        before, state = state, step(state, logits(seed=len(seen), sharp=2.0), params, process=ABSORBING)
        seen.append(state)
        assert torch.equal(state.noisy_ids_BL[before.kept_BL], before.noisy_ids_BL[before.kept_BL])
        stepped = before.kept_BL & ~before.done_B[:, None]
        assert (state.kept_BL | ~before.kept_BL).all() and (state.entropy_BL[stepped] == 0).all()
        assert torch.equal(state.noisy_ids_BL == 10, ~state.kept_BL), "what is not kept is masked; a mask that is drawn is not kept"
        assert torch.equal(state.argmax_ids_BL[state.kept_BL], state.noisy_ids_BL[state.kept_BL]), (
            "a draw that is kept is the answer"
        )
    # It stops as soon as nothing is left to decide: before the last step, though no two steps had the same probable canvas.
    assert 2 < len(seen) < params.num_diffusion_steps and state.kept_BL.all()
    assert torch.equal(committed(state, batch(params, rows=3)), state.noisy_ids_BL)


def test_an_absorbing_canvas_stops_where_the_answer_ends_or_its_rest_is_sure() -> None:
    state = canvas(1, process=ABSORBING)
    answer = answering(3, 4)
    for _ in range(2):
        state = step(state, answer, SamplingParams(stop_rule="answer"), stop_ids=(0,), process=ABSORBING)
    assert state.done_B.all() and not state.kept_BL.all() and state.kept_BL[0, :4].all()
    sure, waits = logits(1, sharp=60.0), canvas(1, process=ABSORBING)
    for _ in range(2):
        waits = step(waits, sure, SamplingParams(entropy_bound=1e-9, confidence=0.5, t_min=1, t_max=1), process=ABSORBING)
    assert waits.done_B.all() and not waits.kept_BL.all() and torch.equal(waits.argmax_ids_BL, sure.argmax(-1))


def test_rows_that_are_done_never_change() -> None:
    state = step(canvas(), logits(), SamplingParams())
    state = replace(state, done_B=torch.tensor([True, False, True]))
    after = step(state, logits(seed=1), SamplingParams())
    for name in ("noisy_ids_BL", "argmax_ids_BL", "entropy_BL", "accepted_BL", "step_B"):
        old, new = getattr(state, name), getattr(after, name)
        assert torch.equal(old[0], new[0]) and torch.equal(old[2], new[2]), name
    assert torch.equal(state.history_SBL[:, [0, 2]], after.history_SBL[:, [0, 2]])
    assert not torch.equal(state.argmax_ids_BL[1], after.argmax_ids_BL[1])


def run(all_logits: list[Tensor], **options: object) -> list[list[bool]]:
    state = canvas(1, stability=int(options.get("stability", 1)))  # type: ignore[call-overload]
    done = []
    for each in all_logits:
        state = step(state, each, SamplingParams(**options))  # type: ignore[arg-type]
        done.append(state.done_B.tolist())
    return done


def test_a_row_stops_when_it_is_stable_and_sure() -> None:
    sure, unsure = logits(1, sharp=200.0), logits(1, sharp=0.5)
    other = logits(1, seed=9, sharp=200.0)
    assert run([sure, sure]) == [[False], [True]]
    assert run([sure, other, other]) == [[False], [False], [True]]
    assert run([unsure, unsure, unsure]) == [[False]] * 3
    assert run([sure], stability=0) == [[True]]
    assert run([sure, sure, sure], stability=2) == [[False], [False], [True]]
    assert run([sure] * 4, early_stop=False, num_diffusion_steps=4) == [[False]] * 3 + [[True]]
    assert run([unsure] * 2, num_diffusion_steps=2) == [[False], [True]]


def answering(stop_at: int, unsure_from: int) -> Tensor:
    """Logits sure of token 1, of the stop token 0 at ``stop_at``, and of nothing from ``unsure_from`` on."""
    made = torch.zeros(1, LENGTH, VOCABULARY)
    made[..., 1] = 100.0
    made[0, stop_at, 0] = 200.0
    made[0, unsure_from:] = logits(1, seed=unsure_from, sharp=0.5)[0, unsure_from:]
    return made


def test_the_answers_stop_rule_does_not_look_behind_the_stop_token() -> None:
    def done_after_two(first: Tensor, second: Tensor, rule: str, pins: Tensor | None = None) -> bool:
        state = canvas(1, pins)
        for each in (first, second):
            state = step(state, each, SamplingParams(stop_rule=rule), stop_ids=(0, 9))  # type: ignore[arg-type]
        return bool(state.done_B.all())

    short = answering(3, 4)
    assert done_after_two(short, short, "answer") and not done_after_two(short, short, "canvas")
    changed_behind, changed_before = answering(3, 5), answering(2, 3)
    assert done_after_two(short, changed_behind, "answer") and not done_after_two(short, changed_before, "answer")
    no_stop = answering(3, 4)
    no_stop[0, 3, 0] = 0.0
    assert not done_after_two(no_stop, no_stop, "answer")
    # A pin after the stop token belongs to the answer, and so does what stands before it.
    pins = torch.full((1, LENGTH), -1)
    pins[0, 7] = 5
    assert not done_after_two(short, short, "answer", pins)
    assert relevant(short.argmax(-1), pins >= 0, torch.tensor([[0]])).all()


def test_commit_rules_take_the_best_the_sampled_or_both() -> None:
    state = step(canvas(), logits(sharp=1.0), SamplingParams(entropy_bound=3.0))
    best, sampled = (committed(state, batch(SamplingParams(commit=rule), rows=3)) for rule in ("best", "canvas"))  # type: ignore[arg-type]
    both = committed(state, batch(SamplingParams(commit="accepted"), rows=3))
    assert torch.equal(best, state.argmax_ids_BL) and torch.equal(sampled, state.noisy_ids_BL)
    assert torch.equal(both[state.accepted_BL], state.noisy_ids_BL[state.accepted_BL])
    assert torch.equal(both[~state.accepted_BL], state.argmax_ids_BL[~state.accepted_BL])
    assert not torch.equal(both, best) and not torch.equal(both, sampled)


def test_pins_do_not_make_a_canvas_sure() -> None:
    pins = torch.zeros(1, LENGTH, dtype=torch.int64)
    pins[0, 0] = -1
    state = canvas(1, pins)
    one_open = torch.zeros(1, LENGTH, VOCABULARY)
    one_open[0, 0, :2] = 20.0  # two tokens equally likely: 0.69 nats; the mean over all eight would be 0.087
    for _ in range(3):
        state = step(state, one_open, SamplingParams(confidence=0.5))
    assert not state.done_B.any()


def test_a_fully_pinned_canvas_stops_at_once() -> None:
    state = canvas(1, torch.zeros(1, LENGTH, dtype=torch.int64))
    for _ in range(2):
        state = step(state, logits(1), SamplingParams())
    assert state.done_B.all() and torch.isfinite(state.entropy_BL).all()


_each = st.builds(
    SamplingParams,
    num_diffusion_steps=st.integers(1, 5),
    entropy_bound=st.floats(0.01, 3),
    t_min=st.floats(0.01, 0.4),
    t_max=st.floats(0.4, 2.0),
    schedule=st.sampled_from(["linear", "cosine"]),
    stability=st.integers(0, 3),
    confidence=st.floats(0.01, 3),
    early_stop=st.booleans(),
    accept=st.sampled_from(["entropy", "confidence", "count"]),
    accept_probability=st.floats(0.1, 1),
    accept_count=st.none() | st.integers(1, 3),
    stop_rule=st.sampled_from(["canvas", "answer"]),
    commit=st.sampled_from(["best", "canvas", "accepted"]),
    canvas_length=st.integers(1, 20),
    seed=st.integers(0, 99),
)
_rows = st.tuples(
    _each, st.lists(st.integers(0, VOCABULARY - 1), max_size=2), st.lists(st.integers(-1, VOCABULARY - 1), max_size=20)
)


@given(st.lists(_rows, min_size=2, max_size=5), st.integers(0, 99))
def test_a_row_is_what_it_is_alone_beside_rows_with_other_parameters_and_lengths(
    rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int
) -> None:
    def begun(row: tuple[SamplingParams, list[int], list[int]]) -> Canvas:
        params, _, pins = row
        length = params.canvas_length or 1
        pinned = torch.tensor([(pins + [-1] * length)[:length]])
        return new_canvas(torch.tensor([params.seed]), torch.tensor([0]), length, UNIFORM, params.stability, pinned)

    def ran(chosen: list[tuple[SamplingParams, list[int], list[int]]]) -> list[list[object]]:
        state = Canvas.cat([begun(row) for row in chosen])
        params = BatchParams.of([row[0] for row in chosen], torch.device("cpu"), [row[1] for row in chosen])
        seen: list[list[object]] = [[] for _ in chosen]
        for at in range(5):
            each = [logits_of(row[0], seed + at) for row in chosen]
            state = step(state, torch.stack([F.pad(one, (0, 0, 0, state.length - len(one))) for one in each]), params)
            given_BL, temperature_B = committed(state, params), temperature(state.step_B, params)
            for row, (one, _, _) in enumerate(chosen):
                kept = slice(one.canvas_length)
                states = (state.noisy_ids_BL, state.argmax_ids_BL, state.entropy_BL, state.accepted_BL, given_BL)
                seen[row] += [value[row, kept].tolist() for value in states]
                seen[row] += [state.done_B[row].item(), state.step_B[row].item(), temperature_B[row].item()]
        return seen

    def logits_of(params: SamplingParams, at: int) -> Tensor:
        drawn = torch.Generator().manual_seed(at // (1 + params.seed % 3) + params.seed)
        return 8 * torch.randn(params.canvas_length or 1, VOCABULARY, generator=drawn)

    together = ran(rows)
    assert together == [ran([row])[0] for row in rows]


def test_rows_leave_and_join_a_batch_as_they_were() -> None:
    short, long = (new_canvas(torch.tensor([3]), torch.tensor([0]), length, UNIFORM, length % 4) for length in (6, 15))
    both = Canvas.cat([short, long])
    for at, (one, length, stability) in enumerate(((short, 6, 2), (long, 15, 3))):
        alone = both.row(at, length, stability)
        for field in fields(Canvas):
            assert torch.equal(getattr(alone, field.name), getattr(one, field.name)), field.name
