"""From requests to pictures: a picture is its request, in any company; words, null and guidance are what they say."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unstir.conditioning.text import WordReader
from unstir.data.transforms import to_bytes
from unstir.device import has_native_bf16
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.samplers import SAMPLERS
from unstir.diffusion.schedule import Cosine, RectifiedFlow, Schedule, Tabulated, VarianceExploding
from unstir.diffusion.spacing import SPACINGS
from unstir.model import Model, ModelConfig, SamplingDefaults, build, save_model
from unstir.nn import DiTConfig, UNetConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import BUILTIN, MAX_SEED, Pipeline, Preview, Request, Result, choose, load, locate_model

TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
READER = WordReader.train(["red heart", "blue star", "a cat", "green"], vocabulary=300, max_tokens=8)
NETWORK = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT)
CONFIG = ModelConfig(size=16, network=NETWORK, sampling=SamplingDefaults(steps=3, guidance_scale=2.0))
PROMPTS = ["red heart", "blue star", "a cat", "green", "heart"]
LONG = "red heart and blue star and a cat and green and heart"


def make(config: ModelConfig = CONFIG) -> Model:
    """A model that listens to its words, sees noise, and draws neither grey nor only black and white."""
    model = build(config, READER)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            scale = 3.0 if "embedding" in name or "pooled" in name else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / math.sqrt(fan_in))
    model.denoiser.eval()
    return model


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(make(), name="tiny", device="cpu", precision="float32")


def pixels(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture).astype(int)


def distance(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of any value, in 1/255."""
    assert one.size == other.size
    return int(abs(pixels(one) - pixels(other)).max())


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def results(pipe: Pipeline, requests: Sequence[Request], **options: Any) -> list[Result]:
    return [item for item in pipe.run(requests, **options) if isinstance(item, Result)]


@contextmanager
def calls(pipe: Pipeline) -> Iterator[list[int]]:
    """Rows of every call of the network."""
    seen: list[int] = []
    network: Any = pipe.model.denoiser.network
    handle = network.register_forward_hook(lambda module, given, output: seen.append(given[0].shape[0]))
    try:
        yield seen
    finally:
        handle.remove()


def test_the_model_of_these_tests_is_alive(pipe: Pipeline) -> None:
    """Words, seeds and guidance all show, and few values are clipped: otherwise the tests below would prove nothing."""
    base = pipe.sample("red heart", seed=0)[0]
    for other in (
        pipe.sample("blue star", seed=0)[0],
        pipe.sample("red heart", seed=1)[0],
        pipe.sample("red heart", seed=0, guidance_scale=1.0)[0],
        pipe.sample("red heart", seed=0, steps=2)[0],
    ):
        assert abs(pixels(base) - pixels(other)).mean() > 3
    assert pixels(base).std() > 20
    assert numpy.isin(pixels(base), (0, 255)).mean() < 0.5


# --- a picture is its request ---


@pytest.fixture(scope="module")
def alone(pipe: Pipeline) -> list[Image.Image]:
    """Five prompts with seeds 10 to 14, each drawn by itself."""
    return [pipe.sample(prompt, seed=10 + i)[0] for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_a_picture_does_not_depend_on_the_batch(pipe: Pipeline, alone: list[Image.Image], batch: int) -> None:
    """Picture i of a call is the picture of seed + i, within 1/255, whatever it is drawn with."""
    drawn = pipe.sample(PROMPTS, seed=10, batch=batch)
    assert len(drawn) == 5
    assert [distance(a, b) <= 1 for a, b in zip(drawn, alone, strict=True)] == [True] * 5


def test_a_picture_does_not_depend_on_its_place_or_company(pipe: Pipeline, alone: list[Image.Image]) -> None:
    requests = pipe.requests(PROMPTS, seed=10)
    order = [3, 0, 4, 2, 1]
    shuffled = results(pipe, [requests[i] for i in order])
    assert all(distance(result.picture, alone[i]) <= 1 for i, result in zip(order, shuffled, strict=True))
    company = [*pipe.requests(["cat cat", LONG, "x"], seed=900), requests[2], *pipe.requests(["y"], seed=5)]
    assert distance(results(pipe, company)[3].picture, alone[2]) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_randomness_along_the_way_is_of_the_picture_too(pipe: Pipeline, sampler: str) -> None:
    """Samplers that draw at every step draw from the picture's own stream."""
    settings: dict[str, Any] = {"sampler": sampler, "steps": 4, "eta": 1.0 if sampler == "ddim" else None}
    together = pipe.sample("red heart", n=3, seed=MAX_SEED - 2, **settings)
    assert all(
        distance(picture, pipe.sample("red heart", seed=MAX_SEED - 2 + i, **settings)[0]) <= 1
        for i, picture in enumerate(together)
    )


def test_seeds_of_several_prompts_follow_each_other(pipe: Pipeline) -> None:
    """Picture k of prompt j has seed + j n + k."""
    requests = pipe.requests(["red heart", "green"], n=3, seed=7)
    assert [(r.prompt, r.seed) for r in requests] == [("red heart", s) for s in (7, 8, 9)] + [
        ("green", s) for s in (10, 11, 12)
    ]


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"negative": "green"}, {"sampler": "ancestral"}])
def test_redo_is_the_same_to_the_last_bit(pipe: Pipeline, settings: dict[str, Any]) -> None:
    """What a result says of itself (row of rows) draws it again exactly, alone or among others."""
    drawn = results(pipe, pipe.requests(PROMPTS, seed=10, **settings), batch=3)
    assert [(r.request.row, r.request.rows) for r in drawn] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    for result in drawn:
        (again,) = results(pipe, [result.request], batch=1)
        assert same(again.picture, result.picture)
        assert again.request == result.request
    everything = results(pipe, [result.request for result in drawn])
    assert all(same(a.picture, b.picture) for a, b in zip(everything, drawn, strict=True))


def test_single_pictures_redo_too(pipe: Pipeline) -> None:
    (drawn,) = results(pipe, pipe.requests(["a cat"], seed=1))
    assert (drawn.request.row, drawn.request.rows) == (0, 1)
    assert same(results(pipe, [drawn.request])[0].picture, drawn.picture)


def test_drawing_twice_draws_the_same(pipe: Pipeline) -> None:
    torch.manual_seed(0)
    first = pipe.sample(PROMPTS, seed=3)
    torch.manual_seed(1)
    assert all(same(a, b) for a, b in zip(first, pipe.sample(PROMPTS, seed=3), strict=True))


def test_different_seeds_differ(pipe: Pipeline) -> None:
    seeds = [0, 1, 2, 2**16, 2**31, MAX_SEED]
    drawn = [pipe.sample("a cat", seed=seed)[0] for seed in seeds]
    assert all(distance(a, b) > 10 for a, b in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("seed", [numpy.int64(3), numpy.uint32(3)])
def test_a_seed_is_a_number_whoever_made_it(pipe: Pipeline, seed: Any) -> None:
    """numpy's 3 is 3: the same picture, or a refusal, but never another picture."""
    try:
        picture = pipe.sample("a cat", seed=seed)[0]
    except (TypeError, ValueError):
        return
    assert same(picture, pipe.sample("a cat", seed=3)[0])


@pytest.mark.parametrize("seed", [3.0, 3.5, True, "3"])
def test_seeds_that_are_no_whole_number_are_refused(pipe: Pipeline, seed: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        pipe.sample("a cat", seed=seed)


def test_fresh_seeds_are_fresh_and_recorded(pipe: Pipeline) -> None:
    seeds = [pipe.request("a cat").seed for _ in range(20)]
    assert len(set(seeds)) > 15
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    first = pipe.requests(["a cat"], n=4)
    assert [r.seed - first[0].seed for r in first] == [0, 1, 2, 3]


# --- guidance ---


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 5), (2.0, 10), (0.0, 10)])
def test_guidance_one_costs_one_forward(pipe: Pipeline, scale: float, rows: int) -> None:
    """Every call sees the pictures once without guidance, twice with; one call a step."""
    with calls(pipe) as seen:
        pipe.sample(PROMPTS, seed=0, guidance_scale=scale)
    assert seen == [rows] * 3


def by_hand(pipe: Pipeline, prompts: Sequence[str], seed: int, scale: float, weak: Sequence[str] | None) -> Tensor:
    """The guided belief at t = 1, clipped: two separate calls of the network, combined by their definition."""
    model = pipe.model
    count = len(prompts)
    level = model.process.schedule.at(torch.ones((), dtype=torch.float64))
    noise = KeyedNoise.from_seeds(range(seed, seed + count)).at(0).normal(torch.zeros(count, 3, 16, 16))
    strong, _ = READER.read(list(prompts))
    other = strong.null() if weak is None else READER.read(list(weak))[0]
    with torch.no_grad():
        end = model.denoiser(noise, level, strong).x0
        start = model.denoiser(noise, level, other).x0
    return (start + scale * (end - start)).clamp(-1, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", SPACINGS)
@pytest.mark.parametrize(("scale", "negative"), [(1.0, ""), (2.0, ""), (3.0, "green"), (0.0, "")])
def test_one_step_is_the_belief_at_the_start(
    pipe: Pipeline, sampler: str, grid: str, scale: float, negative: str
) -> None:
    """steps=1: every sampler on every grid gives weak + w (strong - weak) at t = 1, weak: null or negative."""
    drawn = pipe.sample(
        PROMPTS[:2], seed=4, steps=1, sampler=sampler, grid=grid, guidance_scale=scale, negative=negative
    )
    expected = to_bytes(by_hand(pipe, PROMPTS[:2], 4, scale, [negative] * 2 if negative else None))
    for picture, values in zip(drawn, expected, strict=True):
        assert abs(pixels(picture) - values.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_guidance_zero_is_the_null_prompt(pipe: Pipeline) -> None:
    """w = 0 does not see the words at all."""
    one, other = (pipe.sample(prompt, seed=2, guidance_scale=0.0)[0] for prompt in ("red heart", "blue star"))
    assert distance(one, other) <= 1
    assert distance(one, pipe.sample("red heart", seed=2)[0]) > 10


def test_the_negative_prompt_replaces_the_null(pipe: Pipeline) -> None:
    """Guidance 0 with a negative prompt draws the negative prompt; pushed off from itself, a prompt is itself."""
    plain = pipe.sample("green", seed=2, guidance_scale=1.0)[0]
    assert distance(pipe.sample("red heart", seed=2, guidance_scale=0.0, negative="green")[0], plain) <= 1
    assert distance(pipe.sample("green", seed=2, guidance_scale=5.0, negative="green")[0], plain) <= 1
    assert distance(pipe.sample("red heart", seed=2, negative="green")[0], pipe.sample("red heart", seed=2)[0]) > 5


def test_an_empty_negative_prompt_is_none(pipe: Pipeline) -> None:
    assert same(pipe.sample("green", seed=2, negative="")[0], pipe.sample("green", seed=2)[0])


def test_guidance_acts_in_its_interval_only(pipe: Pipeline) -> None:
    """Everywhere: as without an interval. Nowhere: as guidance 1, at its cost. In part: calls of both sizes."""
    full, none = pipe.sample("a cat", n=2, seed=0)[1], pipe.sample("a cat", n=2, seed=0, guidance_scale=1.0)[1]
    assert same(pipe.sample("a cat", n=2, seed=0, guidance_interval=(-math.inf, math.inf))[1], full)
    with calls(pipe) as seen:
        nowhere = pipe.sample("a cat", n=2, seed=0, guidance_interval=(50.0, 60.0))[1]
    assert seen == [2, 2, 2]
    assert distance(nowhere, none) <= 1
    # Three trailing steps start at t = 1, 2/3, 1/3: log-SNR of the straight path is -inf, -1.39, +1.39.
    with calls(pipe) as seen:
        partly = pipe.sample("a cat", n=2, seed=0, guidance_interval=(-2.0, 0.0))[1]
    assert seen == [2, 4, 2]
    assert distance(partly, full) > 2
    assert distance(partly, none) > 2


# --- every sampler, grid and number of steps ---


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("grid", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_way_to_sample_draws(pipe: Pipeline, sampler: str, grid: str, steps: int) -> None:
    """A picture of the right size, after exactly ``steps`` calls (some samplers ask again within a step), and a preview
    between any two steps.
    """
    with calls(pipe) as seen:
        items = list(pipe.run(pipe.requests(PROMPTS[:2], seed=0, sampler=sampler, grid=grid, steps=steps)))
    assert len(seen) == steps or (
        len(seen) > steps and sampler in ("dpm++2s", "dpm++3s", "heun", "predictor_corrector")
    )
    previews, drawn = items[:-2], items[-2:]
    assert [(p.index, p.steps) for p in previews if isinstance(p, Preview)] == [(i, steps) for i in range(1, steps)]
    assert len(previews) == steps - 1
    for preview in previews:
        assert isinstance(preview, Preview)
        assert preview.pictures.shape == (2, 3, 16, 16)
        assert bool(torch.isfinite(preview.pictures).all())
        assert preview.pictures.abs().max() <= 1
    for item in drawn:
        assert isinstance(item, Result)
        assert (item.picture.size, item.picture.mode) == ((16, 16), "RGB")
        assert item.seconds > 0
        assert item.warnings == ()


def test_the_last_preview_is_not_the_noise(pipe: Pipeline) -> None:
    """Previews show the belief: the first of several is the picture that a single step would give."""
    first = next(item for item in pipe.run([pipe.request("a cat", seed=0)]) if isinstance(item, Preview))
    expected = by_hand(pipe, ["a cat"], 0, 2.0, None)
    torch.testing.assert_close(first.pictures, expected, atol=1e-4, rtol=0)


def test_a_preview_that_nobody_looks_at_is_not_decoded(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = pipe._decode
    monkeypatch.setattr(pipe, "_decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    previews = [
        item for item in pipe.run(pipe.requests(["red", "a cat"], seed=0, steps=4)) if isinstance(item, Preview)
    ]
    assert [preview.rows for preview in previews] == [2, 2, 2]
    assert decoded == [2]  # the pictures themselves
    assert previews[1].pictures is previews[1].pictures
    assert decoded == [2, 2]


def test_previews_of_a_redo_show_one_picture(pipe: Pipeline) -> None:
    request = replace(pipe.request("a cat", seed=0), row=2, rows=4)
    previews = [item for item in pipe.run([request]) if isinstance(item, Preview)]
    assert [preview.pictures.shape for preview in previews] == [(1, 3, 16, 16)] * 2


def test_settings_that_differ_are_drawn_apart_and_in_order(pipe: Pipeline) -> None:
    requests = [
        pipe.request("a cat", seed=0),
        pipe.request("green", seed=1, steps=2),
        pipe.request("heart", seed=2, steps=2, negative="x"),
        pipe.request("star", seed=3, steps=2, negative="y"),
    ]
    drawn = results(pipe, requests)
    assert [r.request.prompt for r in drawn] == ["a cat", "green", "heart", "star"]
    assert [r.request.rows for r in drawn] == [1, 1, 2, 2]
    assert all(distance(r.picture, results(pipe, [q])[0].picture) <= 1 for r, q in zip(drawn, requests, strict=True))


def test_a_model_of_any_size_draws_other_sizes() -> None:
    """A U-Net draws multiples of its own step, width and height not confused; even if its step is its size."""
    network = UNetConfig(width=8, multipliers=(1, 1, 1), blocks=1, attention=(), heads=2, text=TEXT)
    unet = Pipeline(make(replace(CONFIG, network=network, size=4)), device="cpu")
    assert unet.multiple == 4
    assert unet.sample("a cat", seed=0, steps=2, width=12, height=4)[0].size == (12, 4)
    for width, height in ((6, 4), (0, 4), (-4, 4), (4, 2), (64, 68)):
        with pytest.raises(ValueError, match=f"{width}x{height}"):
            unet.request("a cat", width=width, height=height)


def test_bf16_draws_nearly_the_same(pipe: Pipeline) -> None:
    fine, coarse = pipe.sample("a cat", seed=0)[0], pipe.sample("a cat", seed=0, precision="bf16")[0]
    assert abs(pixels(fine) - pixels(coarse)).mean() < 8
    assert not same(fine, coarse)


@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="this CPU multiplies no bf16 natively")
@pytest.mark.parametrize("network", [NETWORK, UNetConfig(width=32, multipliers=(1, 2), attention=(1,), text=TEXT)])
@pytest.mark.parametrize("batch", [2, 3, 5])
def test_in_bf16_a_picture_is_the_same_to_the_bit_whatever_stands_beside_it(network: Any, batch: int) -> None:
    """What lets "auto" be bf16 for drawing."""
    pipe = Pipeline(make(replace(CONFIG, network=network)), device="cpu")
    assert pipe.precision == "bf16"
    apart = [pipe.sample(prompt, seed=10 + i)[0] for i, prompt in enumerate(PROMPTS)]
    together = pipe.sample(PROMPTS, seed=10, batch=batch)
    assert all(same(one, other) for one, other in zip(apart, together, strict=True))


# --- nothing is changed, nothing is shared ---


def test_sampling_leaves_the_model_as_it_was(pipe: Pipeline) -> None:
    """Weights, modes and gradients, to the last bit; and torch's random stream (C36)."""
    before = {name: tensor.clone() for name, tensor in pipe.model.denoiser.state_dict().items()}
    stream, config = torch.get_rng_state(), pipe.model.config
    pipe.sample(PROMPTS, seed=0, negative="green", sampler="ancestral")
    after = pipe.model.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in pipe.model.denoiser.parameters())
    assert not any(part.training for part in pipe.model.denoiser.modules())
    assert torch.equal(torch.get_rng_state(), stream)
    assert pipe.model.config is config
    assert torch.is_grad_enabled()


def test_an_abandoned_drawing_leaves_nothing_behind(pipe: Pipeline) -> None:
    """Whoever stops looking after the first preview: gradients are on, and the next picture is as ever."""
    before = pipe.sample("a cat", seed=0)[0]
    walk = pipe.run([pipe.request("green", seed=1, precision="bf16")])
    next(walk)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    walk.close()  # type: ignore[attr-defined]
    assert same(pipe.sample("a cat", seed=0)[0], before)


def test_threads_share_a_pipeline(pipe: Pipeline) -> None:
    """Different samplers, steps and words at once, from one object, draw what they draw one after another (C21)."""
    jobs: list[dict[str, Any]] = [
        {"prompt": "red heart", "n": 2, "seed": 0, "steps": 6, "sampler": "dpm++2m"},
        {"prompt": ["a cat", LONG], "seed": 9, "steps": 5, "sampler": "ancestral", "negative": "green"},
        {"prompt": "green", "seed": 5, "steps": 7, "sampler": "ddim", "guidance_scale": 1.0},
    ]
    serial = [pipe.sample(**job) for job in jobs]
    for _ in range(2):
        parallel: dict[int, list[Image.Image]] = {}
        barrier = threading.Barrier(len(jobs))

        def work(index: int, barrier: threading.Barrier = barrier, found: dict[int, Any] = parallel) -> None:
            barrier.wait()
            found[index] = pipe.sample(**jobs[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, pictures in enumerate(serial):
            assert all(same(a, b) for a, b in zip(parallel[index], pictures, strict=True)), index


def test_interleaved_drawings_do_not_mix(pipe: Pipeline) -> None:
    """Two generators of one pipeline, advanced in turn."""
    one, other = (
        pipe.run([pipe.request(prompt, seed=0, steps=6, sampler=sampler)])
        for prompt, sampler in (("a cat", "dpm++2m"), ("green", "ancestral"))
    )
    last: list[Any] = [None, None]
    for pair in itertools.zip_longest(one, other):
        last = [item if item is not None else old for item, old in zip(pair, last, strict=True)]
    assert same(last[0].picture, pipe.sample("a cat", seed=0, steps=6)[0])
    assert same(last[1].picture, pipe.sample("green", seed=0, steps=6, sampler="ancestral")[0])


# --- warnings ---


def test_cut_prompts_are_said_once_a_picture(pipe: Pipeline) -> None:
    """Each picture warns of its own prompts, each once, in whatever company it is drawn, and when it is redone."""
    drawn = results(pipe, [*pipe.requests([LONG], n=3, seed=0), *pipe.requests(["a cat"], seed=9)])
    assert [len(result.warnings) for result in drawn] == [1, 1, 1, 0]
    for warning in drawn[0].warnings:
        assert LONG in warning
        assert "red heart" in warning
    (again,) = results(pipe, [drawn[0].request])
    assert again.warnings == drawn[0].warnings


def test_cut_negative_prompts_are_said(pipe: Pipeline) -> None:
    (drawn,) = results(pipe, [pipe.request("a cat", seed=0, negative=LONG)])
    assert len(drawn.warnings) == 1
    assert LONG in drawn.warnings[0]


def test_a_picture_that_is_not_finite_is_not_given() -> None:
    model = make(replace(CONFIG, sampling=replace(CONFIG.sampling, clip=False)))
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(math.nan)
    with pytest.raises(ArithmeticError, match="not finite"):
        Pipeline(model, device="cpu").sample("a cat", seed=0)


# --- weighted and long prompts ---


@pytest.mark.parametrize("settings", [{}, {"negative": "green"}, {"guidance_scale": 1.0}])
def test_a_prompt_without_weights_is_the_plain_picture(pipe: Pipeline, settings: dict[str, Any]) -> None:
    """To the last bit, if it fits; so is one whose weights are all 1."""
    for plain, weighted in (("a cat", "a cat"), ("red heart", "(red:1) [(heart)]"), ("a (cat)", r"a \(cat\)")):
        one = pipe.sample(plain, seed=4, n=2, **settings)
        other = pipe.sample(weighted, seed=4, n=2, syntax="weighted", **settings)
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_brackets_of_a_plain_prompt_are_words(pipe: Pipeline) -> None:
    plain, weighted = (pipe.sample("a (cat:0)", seed=4, syntax=syntax)[0] for syntax in ("plain", "weighted"))
    assert distance(plain, weighted) > 2
    assert pipe.request("a (cat:99)").syntax == "plain"


def test_weights_lead_from_without_a_word_to_with_it(pipe: Pipeline) -> None:
    """The nearer to 1 a weight is, the nearer is the picture to the plain one, from both sides."""
    plain = pixels(pipe.sample("red heart", seed=4)[0])
    drawn = [pixels(pipe.sample(f"(red:{w}) heart", seed=4, syntax="weighted")[0]) for w in (0, 0.5, 0.9, 1.1, 1.5, 2)]
    away = [float(abs(each - plain).mean()) for each in drawn]
    assert away[0] > away[1] > away[2] > 0
    assert 0 < away[3] < away[4] < away[5]


def test_weights_of_the_negative_prompt_act(pipe: Pipeline) -> None:
    without, half, whole = (
        pipe.sample("red heart", seed=4, syntax="weighted", negative=f"(blue:{w}) star")[0] for w in (0, 0.5, 1)
    )
    assert distance(without, half) > 0
    assert distance(half, whole) > 0


def test_long_prompts_are_read_whole(pipe: Pipeline) -> None:
    """What stands beyond the length of the model shows, and nothing is said to be cut."""
    one, other = (
        results(pipe, [pipe.request(f"{LONG} {word}", seed=4, syntax="weighted")]) for word in ("red", "blue")
    )
    assert one[0].warnings == other[0].warnings == ()
    assert distance(one[0].picture, other[0].picture) > 1
    (plain,) = results(pipe, pipe.requests([LONG], seed=4))
    assert "--prompt-syntax weighted" in plain.warnings[0]
    (cut,) = results(pipe, pipe.requests([LONG * 20], seed=4, syntax="weighted"))
    assert "tokens, the model reads" in cut.warnings[0]
    assert "--prompt-syntax" not in cut.warnings[0]


@pytest.mark.parametrize("negative", ["", "a (star)", LONG])
def test_weighted_prompts_of_many_lengths_redo_to_the_last_bit(pipe: Pipeline, negative: str) -> None:
    prompts = ["(red:1.5) heart", "blue star", LONG, f"[{LONG}]", "(green:0)"]
    drawn = results(pipe, pipe.requests(prompts, seed=10, syntax="weighted", negative=negative), batch=5)
    for result in drawn:
        (again,) = results(pipe, [result.request], batch=1)
        assert same(again.picture, result.picture)
        assert again.request.syntax == "weighted"


# --- grids that are said as text ---


@pytest.mark.parametrize(("grid", "steps"), [("sections 1,2", 3), ("1,0.5,0.25,0.1", 4), ("0.7,0.2", 2)])
def test_a_grid_brings_its_number_of_steps(pipe: Pipeline, grid: str, steps: int) -> None:
    """The picture's request says it, and draws it again; the same times drawn by another name are the same picture."""
    (drawn,) = results(pipe, pipe.requests(["a cat"], seed=1, grid=grid))
    assert (drawn.request.grid, drawn.request.steps) == (grid, steps)
    assert same(results(pipe, [drawn.request])[0].picture, drawn.picture)
    assert same(pipe.sample("a cat", seed=1, grid=grid, steps=steps)[0], drawn.picture)


def test_explicit_times_are_the_grid_that_has_them(pipe: Pipeline) -> None:
    assert same(
        pipe.sample("a cat", seed=1, grid="1,0.75,0.5,0.25")[0],
        pipe.sample("a cat", seed=1, grid="trailing", steps=4)[0],
    )


@pytest.mark.parametrize("schedule", [VarianceExploding(), RectifiedFlow(), Cosine()], ids=["ve", "flow", "vp"])
def test_a_late_start_has_the_noise_of_its_level(schedule: Schedule) -> None:
    """The first x that the network sees is noise as large as spoiled data is there, not as it is at t = 1."""
    pipe = Pipeline(make(replace(CONFIG, schedule=schedule)), device="cpu")
    ratios: list[float] = []
    for grid in ("1,0.3", "0.5,0.3"):
        seen: list[Tensor] = []
        network = cast("nn.Module", pipe.model.denoiser.network)
        watch = network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        pipe.sample("a cat", seed=1, grid=grid, guidance_scale=1.0)
        watch.remove()
        level = schedule.at(torch.tensor(float(grid.split(",")[0]), dtype=torch.float64))
        ratios.append(seen[0].std().item() / torch.hypot(level.alpha, level.sigma).item())
    assert ratios[0] == pytest.approx(1, abs=0.05)
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-5)


def test_a_chain_has_no_more_steps_than_it_has() -> None:
    pipe = Pipeline(make(replace(CONFIG, schedule=Tabulated.from_schedule(Cosine(), 12))), device="cpu")
    assert len(pipe.sample("a cat", seed=1, steps=12)) == 1
    for grid in ("trailing", "karras", "leading"):
        with pytest.raises(ValueError, match="chain has 12 steps, got 13; ask for at most"):
            pipe.request("a cat", steps=13, grid=grid)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \t\n\u3000"}, "prompt is empty"),
        ({"seed": -1}, "seed .*4294967295.*-1"),
        ({"seed": 2**32}, "seed .*4294967296"),
        ({"steps": 0}, "steps .*1 to 1000.*0"),
        ({"steps": 1001}, "steps .*1001"),
        ({"steps": -3}, "steps"),
        ({"sampler": "dpm2m"}, r"unknown sampler 'dpm2m'; did you mean dpm\+\+2m\? there are .*ancestral.*ddim"),
        ({"sampler": "zzz"}, r"unknown sampler 'zzz'; there are .*ancestral.*ddim"),
        ({"grid": "trailling"}, "unknown grid 'trailling'; did you mean trailing"),
        ({"syntax": "wieghted"}, "unknown prompt syntax 'wieghted'; did you mean weighted"),
        ({"syntax": "weighted", "prompt": "( [] )"}, "prompt is empty"),
        ({"syntax": "weighted", "prompt": "a (cat:11)"}, 'weight of "cat" must be from -10 to 10, got 11'),
        ({"syntax": "weighted", "negative": "a (cat:11)"}, 'weight of "cat" must be from -10 to 10, got 11'),
        ({"grid": "1,0.8,0.4", "steps": 5}, "grid '1,0.8,0.4' has 3 steps, got 5; leave --steps out"),
        ({"grid": "0.4,0.8"}, "fall strictly"),
        ({"grid": "sections 600,2"}, "cannot be walked in 600"),
        ({"width": 24}, "16x16 pictures, got 24x16"),
        ({"height": 32, "width": 32}, "got 32x32"),
        ({"eta": 0.5}, "eta .*ddim"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta"),
        ({"eta": math.nan, "sampler": "ddim"}, "eta"),
        ({"guidance_scale": math.nan}, "guidance"),
        ({"guidance_scale": math.inf}, "guidance"),
        ({"guidance_scale": -101.0}, "guidance"),
        ({"guidance_interval": (2.0, 2.0)}, "interval"),
        ({"guidance_interval": (math.nan, 2.0)}, "interval"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused(pipe: Pipeline, settings: dict[str, Any], words: str) -> None:
    """ValueError, one line, before anything is drawn."""
    with calls(pipe) as seen, pytest.raises(ValueError, match=words) as caught:
        pipe.sample(**{"prompt": "a cat", **settings})
    assert "\n" not in str(caught.value)
    assert seen == []


def test_requests_that_others_made_are_checked_too(pipe: Pipeline) -> None:
    """Nothing is drawn of a list one of whose requests is wrong."""
    good = pipe.request("a cat", seed=0)
    for bad in (replace(good, steps=0), replace(good, row=2, rows=2), replace(good, row=-1), replace(good, rows=9999)):
        with calls(pipe) as seen, pytest.raises(ValueError, match=r"steps|row"):
            list(pipe.run([good, bad]))
        assert seen == []


@pytest.mark.parametrize(("prompts", "n"), [([], 1), ("a cat", 0), ("a cat", -1)])
def test_no_pictures_are_refused(pipe: Pipeline, prompts: Any, n: int) -> None:
    with pytest.raises(ValueError, match=r"no prompt|at least 1"):
        pipe.sample(prompts, n=n)


@pytest.mark.parametrize("batch", [0, -1])
def test_no_batch_is_refused(pipe: Pipeline, batch: int) -> None:
    with pytest.raises(ValueError, match="batch"):
        pipe.sample("a cat", n=2, seed=0, batch=batch)


def test_the_last_seed_must_be_in_range(pipe: Pipeline) -> None:
    assert pipe.requests(["a cat"], n=3, seed=MAX_SEED - 2)[-1].seed == MAX_SEED
    with pytest.raises(ValueError, match=f"0 to {MAX_SEED - 2} for 3 pictures, got {MAX_SEED - 1}"):
        pipe.requests(["a cat"], n=3, seed=MAX_SEED - 1)
    with pytest.raises(ValueError, match="got -1"):
        pipe.requests(["a cat"], n=3, seed=-1)


def test_unknown_settings_are_refused(pipe: Pipeline) -> None:
    with pytest.raises((TypeError, ValueError), match="gidance"):
        pipe.sample("a cat", gidance=3.0)  # type: ignore[call-arg]


def test_guidance_needs_a_model_that_learnt_the_null() -> None:
    """Trained without dropped captions, a model is drawn with guidance 1 only."""
    never = Pipeline(make(replace(CONFIG, condition_drop=0.0)), device="cpu")
    with pytest.raises(ValueError, match="without dropped captions"):
        never.request("a cat", guidance_scale=2.0)
    assert len(never.sample("a cat", seed=0, guidance_scale=1.0)) == 1


def test_defaults_are_the_models_own() -> None:
    sampling = SamplingDefaults(
        sampler="ddim", steps=5, grid="uniform_log_snr", guidance_scale=3.0, guidance_interval=(-1.0, 2.0), eta=0.25
    )
    pipe = Pipeline(make(replace(CONFIG, sampling=sampling)), device="cpu", precision="float32")
    request = pipe.request("a cat", seed=1, steps=None)
    assert request == Request(
        prompt="a cat",
        seed=1,
        steps=5,
        sampler="ddim",
        grid="uniform_log_snr",
        guidance_scale=3.0,
        guidance_interval=(-1.0, 2.0),
        eta=0.25,
        width=16,
        height=16,
        precision="float32",
    )


def test_the_precision_is_said_in_full(pipe: Pipeline) -> None:
    """A request says what is drawn, on this machine and on the next: never "auto", which is another thing elsewhere."""
    assert pipe.request("a cat").precision == "float32"
    assert pipe.request("a cat", precision="auto").precision in ("float32", "bf16")
    native = has_native_bf16(torch.device("cpu"))
    assert Pipeline(pipe.model, device="cpu", precision="auto").precision == ("bf16" if native else "float32")
    assert Pipeline(pipe.model, device="cpu", precision="bf16").request("a cat").precision == "bf16"
    assert isinstance(has_native_bf16(pipe.device), bool)


def test_devices_and_precisions_that_do_not_exist(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="no device"):
        Pipeline(pipe.model, device="banana")
    with pytest.raises(ValueError, match="unknown precision"):
        Pipeline(pipe.model, device="cpu", precision="fp16")


def test_choose() -> None:
    assert choose("b", ["a", "b"], "letter") == "b"
    with pytest.raises(ValueError, match="unknown letter 'c'; there are a, b"):
        choose("c", iter(["a", "b"]), "letter")


# --- finding models ---


def test_models_are_found(pipe: Pipeline, tmp_path: Path) -> None:
    """A model folder, a run folder with its model, text or path; loaded, they draw the same."""
    save_model(pipe.model, tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert locate_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert locate_model(str(tmp_path / "run" / "model")) == tmp_path / "run" / "model"
    assert locate_model("builtin") == BUILTIN
    expected = pipe.sample("a cat", seed=0)[0]
    for name in (tmp_path / "run", str(tmp_path / "run" / "model")):
        loaded = load(name, device="cpu", precision="float32")
        assert loaded.name == str(name)
        assert same(loaded.sample("a cat", seed=0)[0], expected)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ValueError, match="no device"):
        load(tmp_path / "run", device="banana")


def test_a_model_folder_that_holds_a_model_folder_is_itself(pipe: Pipeline, tmp_path: Path) -> None:
    save_model(pipe.model, tmp_path / "m")
    save_model(pipe.model, tmp_path / "m" / "model")
    assert locate_model(tmp_path / "m") == tmp_path / "m"


def test_the_builtin_model_draws() -> None:
    if not BUILTIN.exists():
        pytest.skip(f"THERE IS NO BUILT-IN MODEL: {BUILTIN} does not exist, so nothing of it is tested")
    builtin = load("builtin", device="cpu")
    assert builtin.name == "builtin"
    assert len(builtin.model.checksum) == 64
    size = builtin.model.config.size
    one, other = builtin.sample(["a red heart", "a blue car"], seed=0, steps=2)
    assert one.size == other.size == (size, size)
    assert abs(pixels(one) - pixels(other)).mean() > 1
