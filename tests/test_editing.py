"""Pictures from pictures: what is kept is kept to the bit, strength and steps mean what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.conditioning.text import WordReader
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.samplers import DDIM
from unstir.diffusion.schedule import LinearBeta
from unstir.editing import (
    Blend,
    Canvas,
    Edit,
    Reference,
    Way,
    asked,
    canvas_of,
    checksum,
    read_mask,
    read_picture,
    recovered,
    shares,
)
from unstir.model import Model, ModelConfig, SamplingDefaults, build
from unstir.nn import DiTConfig, UNetConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline, Preview, Request, Result, load

TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
READER = WordReader.train(["red heart", "blue star", "a cat", "green"], vocabulary=300, max_tokens=8)
CONFIG = ModelConfig(
    size=16,
    network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
    sampling=SamplingDefaults(steps=3, guidance_scale=2.0),
)
GROWING = replace(CONFIG, network=UNetConfig(width=16, multipliers=(1, 1), blocks=1, attention=(), text=TEXT))


def make(config: ModelConfig) -> Model:
    model = build(config, READER)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    model.denoiser.eval()
    return model


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(make(CONFIG), name="tiny", device="cpu")


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def mask_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    mask = Image.new("L", size, 0)
    for box in boxes:
        mask.paste(255, box)
    return mask


def pixels(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


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


# --- strength ---


def test_strength_0_is_the_picture_itself_without_a_call(pipe: Pipeline) -> None:
    source = picture()
    with calls(pipe) as seen:
        out = pipe.edit(source, "a cat", strength=0.0, n=2, seed=5)
    assert seen == []
    assert [same(one, source) for one in out] == [True, True]


@pytest.mark.parametrize("grid", ["trailing", "uniform_log_snr", "karras"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++2m"])
def test_strength_1_is_the_picture_of_the_prompt_alone(pipe: Pipeline, grid: str, sampler: str) -> None:
    """The same seed, the same bits: nothing of the picture is left."""
    out = pipe.edit(picture(), "a cat", strength=1.0, n=2, seed=5, grid=grid, sampler=sampler)
    assert all(map(same, out, pipe.sample("a cat", n=2, seed=5, grid=grid, sampler=sampler)))


def test_the_start_is_the_picture_spoiled_to_time_strength(pipe: Pipeline) -> None:
    """On the straight path: (1 - strength) picture + strength noise, with the noise of the plain way."""
    edit, album = asked(picture(), strength=0.3)
    canvas = canvas_of(edit, album, 16, 16)
    noise = KeyedNoise.from_seeds([7])
    x0 = canvas.units()
    z = noise.normal(x0)
    plain = Way(x=z, times=(0.3, 0.0), denoise=lambda x_t, level, previous=None: Estimate(x0=x_t), sampler=DDIM())
    way = plain.upon(canvas, edit, pipe.model.process, x0, noise)
    assert torch.allclose(way.x, 0.7 * x0 + 0.3 * z, atol=1e-6)
    assert (way.times, way.sampler, way.denoise) == (plain.times, plain.sampler, plain.denoise)


def test_strength_1_leaves_nothing_where_the_path_ends_with_signal() -> None:
    """The linear schedule keeps some signal at t = 1; a picture of the prompt alone has none of any source."""
    pipe = Pipeline(make(replace(CONFIG, schedule=LinearBeta())), device="cpu")
    out = [pipe.edit(picture(seed=s), "a cat", strength=1.0, seed=5)[0] for s in (1, 2)]
    assert all(same(one, pipe.sample("a cat", seed=5)[0]) for one in out)


def test_the_level_that_is_started_from_is_that_of_the_strength(pipe: Pipeline) -> None:
    """The times that the network is asked at, as the number that it reads: from the strength, evenly to 0."""
    seen: list[float] = []
    network: Any = pipe.model.denoiser.network
    handle = network.register_forward_hook(lambda module, given, output: seen.append(given[1][0].item()))
    try:
        pipe.edit(picture(), "a cat", strength=0.6, seed=0, steps=3, grid="trailing")
    finally:
        handle.remove()
    times = torch.tensor([0.6, 0.4, 0.2], dtype=torch.float64)
    levels = pipe.model.process.schedule.at(times)
    expected = [
        pipe.model.denoiser.parameterization.encode(torch.zeros(1, 1), levels[i])[1][0].item() for i in range(3)
    ]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++2m", "unipc"])
@pytest.mark.parametrize("strength", [0.004, 0.02, 0.5, 0.97, 1.0])
def test_steps_are_the_steps_executed(pipe: Pipeline, sampler: str, strength: float) -> None:
    for grid in ("trailing", "uniform_log_snr"):
        for steps in (1, 2, 5):
            with calls(pipe) as seen:
                settings: dict[str, Any] = {"sampler": sampler, "grid": grid, "steps": steps}
                pipe.edit(picture(), "a cat", strength=strength, seed=0, **settings)
            assert len(seen) == steps, (grid, steps)


def test_previews_are_shown_as_in_sampling(pipe: Pipeline) -> None:
    requests, album = pipe.edit_requests(picture(), "a cat", seed=0, strength=0.5, steps=4)
    items = list(pipe.run(requests, album=album))
    assert [item.index for item in items if isinstance(item, Preview)] == [1, 2, 3]
    assert isinstance(items[-1], Result)


def test_an_edit_does_not_depend_on_its_company(pipe: Pipeline) -> None:
    together = pipe.edit(picture(), "a cat", mask=mask_of((0, 0, 9, 9)), n=5, seed=10, batch=3)
    for i, one in enumerate(together):
        alone = pipe.edit(picture(), "a cat", mask=mask_of((0, 0, 9, 9)), seed=10 + i)[0]
        assert abs(pixels(one) - pixels(alone)).max() <= 1
    assert not same(together[0], together[1])


# --- masks ---


def test_outside_the_mask_not_a_bit_changes_in_three_edits_in_a_row(pipe: Pipeline) -> None:
    source = picture()
    boxes = [(1, 2, 9, 8), (5, 5, 16, 6), (0, 15, 1, 16)]
    now, touched = source, numpy.zeros((16, 16), bool)
    for i, box in enumerate(boxes):
        now = pipe.edit(now, "red heart", mask=mask_of(box), seed=i, resample=1 + i)[0]
        touched[box[1] : box[3], box[0] : box[2]] = True
    assert numpy.array_equal(pixels(now)[~touched], pixels(source)[~touched])
    assert abs(pixels(now)[touched] - pixels(source)[touched]).mean() > 3


def test_a_mask_of_everything_is_no_mask(pipe: Pipeline) -> None:
    whole = mask_of((0, 0, 16, 16))
    assert same(pipe.edit(picture(), "a cat", mask=whole, seed=2)[0], pipe.sample("a cat", seed=2)[0])


def test_the_very_pixels_come_back_whatever_the_model_makes_of_them() -> None:
    """Also where the space of the model cannot hold them, as that of bits or of latents cannot."""
    canvas = Canvas(pixels=read_picture(picture()), mask=read_mask(mask_of((0, 0, 8, 16))))
    drawn = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
    out = canvas.restored(drawn)
    assert bool((out[..., :8] == 7).all())
    assert torch.equal(out[..., 8:], canvas.pixels[None, ..., 8:].expand(2, -1, -1, -1))
    assert torch.equal(Canvas(pixels=canvas.pixels).restored(drawn), drawn)


def test_a_mask_of_nothing_leaves_the_picture_and_says_so(pipe: Pipeline) -> None:
    requests, album = pipe.edit_requests(picture(), "a cat", mask=mask_of(), seed=2)
    with calls(pipe) as seen:
        (result,) = pipe.run(requests, album=album)
    assert isinstance(result, Result)
    assert seen == []
    assert same(result.picture, picture())
    assert "paints nothing" in result.warnings[0]


def test_what_is_known_leads_what_is_painted(pipe: Pipeline) -> None:
    """Two pictures that differ outside the mask alone are painted differently inside, with one seed."""
    mask = mask_of((8, 0, 16, 16))
    one, other = (pipe.edit(picture(seed=s), "a cat", mask=mask, seed=0)[0] for s in (1, 2))
    assert abs(pixels(one)[:, 8:] - pixels(other)[:, 8:]).max() > 3


def test_each_step_is_walked_as_often_as_said(pipe: Pipeline) -> None:
    """All steps but the last, to the data, which is the belief."""
    with calls(pipe) as seen:
        pipe.edit(picture(), "a cat", mask=mask_of((0, 0, 8, 8)), seed=0, steps=4, resample=3, sampler="ddim")
    assert len(seen) == 3 * 3 + 1


def test_a_picture_is_extended(pipe: Pipeline) -> None:
    source = picture(10, 12)
    out = pipe.edit(source, "a cat", extend=(4, 3, 2, 1), seed=0)[0]
    assert out.size == (16, 16)
    assert same(out.crop((4, 3, 14, 15)), source)
    assert pixels(out)[:, :4].std() > 3
    both = pipe.edit(source, "a cat", extend=(4, 3, 2, 1), mask=mask_of((0, 0, 5, 5), size=(10, 12)), seed=0)[0]
    assert same(both.crop((9, 8, 14, 15)), source.crop((5, 5, 10, 12)))
    assert not same(both.crop((4, 3, 9, 8)), source.crop((0, 0, 5, 5)))


def test_a_network_of_any_size_draws_pictures_of_any() -> None:
    pipe = Pipeline(make(GROWING), device="cpu")
    source = picture(24, 20)
    out = pipe.edit(source, "a cat", mask=mask_of((0, 0, 7, 7), size=(24, 20)), seed=0)[0]
    assert same(out.crop((7, 0, 24, 20)), source.crop((7, 0, 24, 20)))
    with pytest.raises(ValueError, match="multiples of 2"):
        pipe.edit(picture(25, 20), "a cat")


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_of_another_size_is_fitted(pipe: Pipeline, fit: str) -> None:
    source = Image.new("RGB", (40, 20), (200, 10, 10))
    out = pipe.edit(source, "a cat", fit=fit, strength=0.0)[0]
    assert out.size == (16, 16)
    assert pixels(out)[8, 8].tolist() == [200, 10, 10]
    assert (pixels(out)[0, 0].tolist() == [255] * 3) == (fit == "pad")
    masked = pipe.edit(source, "a cat", fit=fit, seed=0, mask=mask_of((0, 0, 20, 20), size=(40, 20)))[0]
    assert same(masked.crop((12, 8, 16, 9)), out.crop((12, 8, 16, 9)))


# --- ways ---


def test_the_way_between_prompts_has_the_prompts_at_its_ends(pipe: Pipeline) -> None:
    way = pipe.between("red heart", "blue star", frames=4, seed=3)
    ends = [pipe.sample(prompt, seed=3)[0] for prompt in ("red heart", "blue star")]
    assert len(way) == 4
    for frame, end in zip((way[0], way[-1]), ends, strict=True):
        assert abs(pixels(frame) - pixels(end)).max() <= 1
    assert len({frame.tobytes() for frame in way}) == 4


def test_the_way_between_pictures_has_the_pictures_at_its_ends() -> None:
    """As near as the inversion is; a network without training believes too wildly for it, so the built-in one is asked."""
    builtin = load("builtin", device="cpu")
    ends = tuple(builtin.sample(["a red heart", "a strawberry"], seed=3))
    way = builtin.between("a red heart", "a strawberry", pictures=(ends[0], ends[1]), frames=2, seed=0)
    for frame, end in zip(way, ends, strict=True):
        assert abs(pixels(frame) - pixels(end)).mean() < 4
    assert abs(pixels(ends[0]) - pixels(ends[1])).mean() > 20


def test_a_frame_does_not_depend_on_its_company(pipe: Pipeline) -> None:
    ends = (picture(seed=1), picture(seed=2))
    requests, album = pipe.between_requests("a cat", "green", pictures=ends, frames=5, seed=0)
    together = [r.picture for r in pipe.run(requests, album=album) if isinstance(r, Result)]
    alone = [r.picture for r in pipe.run(requests[3:4], album=album) if isinstance(r, Result)]
    assert abs(pixels(together[3]) - pixels(alone[0])).max() <= 1


def test_shares_include_both_ends() -> None:
    assert shares(3) == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="two ends"):
        shares(1)


# --- tiles ---


def test_a_tile_costs_four_calls_for_one(pipe: Pipeline) -> None:
    with calls(pipe) as seen:
        tile = pipe.sample("a cat", seed=0, steps=3, tile=True)[0]
    assert len(seen) == 12
    assert not same(tile, pipe.sample("a cat", seed=0, steps=3)[0])


# --- requests ---


def test_a_request_that_was_drawn_in_company_is_drawn_again_to_the_bit(pipe: Pipeline) -> None:
    requests, album = pipe.edit_requests(picture(), "a cat", mask=mask_of((0, 0, 9, 9)), n=3, seed=1, resample=2)
    way, more = pipe.between_requests("a cat", "green", pictures=(picture(), picture(seed=4)), frames=3, seed=0)
    for asked_for, pictures in ((requests, album), (way, more)):
        for result in pipe.run(asked_for, album=pictures):
            if isinstance(result, Result):
                (again,) = [r for r in pipe.run([result.request], album=pictures) if isinstance(r, Result)]
                assert same(again.picture, result.picture)


def test_a_request_without_its_picture_says_which(pipe: Pipeline, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    requests, album = pipe.edit_requests(tmp_path / "a.png", "a cat", seed=0)
    assert requests[0].edit is not None
    assert requests[0].edit.source.name == str(tmp_path / "a.png")
    assert list(album) == [requests[0].edit.source.sha256]
    with pytest.raises(ValueError, match=r"needs the picture \(.*a.png\) whose pixels have sha256"):
        list(pipe.run(requests))


def test_checksums_are_of_what_is_seen(tmp_path: Path) -> None:
    """Not of the file; a picture and the same turned differ, as do masks and pictures."""
    source = picture(4, 6)
    source.save(tmp_path / "a.png")
    source.save(tmp_path / "b.webp", lossless=True)
    sums = [checksum(read_picture(given)) for given in (source, tmp_path / "a.png", str(tmp_path / "b.webp"))]
    assert len(set(sums)) == 1
    ones = torch.zeros(3, 2, 8, dtype=torch.uint8), torch.zeros(3, 8, 2, dtype=torch.uint8)
    assert len({*map(checksum, ones), checksum(torch.zeros(2, 24, dtype=torch.bool))}) == 3


def test_transparency_of_a_picture_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    clear.save(tmp_path / "a.png")
    assert int(read_picture(clear).min()) == int(read_picture(tmp_path / "a.png").min()) == 255
    assert bool(read_mask(clear).all())
    assert bool(read_mask(tmp_path / "a.png").all())


def test_a_picture_is_recovered_by_its_content(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture(seed=1).save(tmp_path / "b.png")
    reference = Reference(sha256=checksum(read_picture(picture())), name=str(tmp_path / "a.png"))
    for where in (None, tmp_path / "a.png"):
        assert checksum(recovered(reference, where, "picture", "--source")) == reference.sha256
    with pytest.raises(ValueError, match="give the right one with --source"):
        recovered(reference, tmp_path / "b.png", "picture", "--source")
    with pytest.raises(ValueError, match="in no file; give it with --source"):
        recovered(replace(reference, name=""), None, "picture", "--source")
    with pytest.raises(ValueError, match="not at .* any more; give it with --source"):
        recovered(replace(reference, name="/nowhere.png"), None, "picture", "--source")


SOURCE = Reference(sha256="0" * 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strength": 1.5}, "strength must be from 0"),
        ({"strength": math.nan}, "strength must be from 0"),
        ({"resample": 0, "mask": SOURCE}, "resample must be from 1"),
        ({"resample": 2}, "give a mask or extend"),
        ({"extend": (-1, 0, 0, 0)}, "four numbers of pixels"),
        ({"fit": "squash"}, "unknown fit 'squash'"),
        ({"fit": "crop", "extend": (1, 0, 0, 0)}, "not both"),
    ],
)
def test_what_is_no_edit(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Edit(source=SOURCE, **fields)


def test_a_canvas_is_of_the_size_that_is_asked_for() -> None:
    edit, album = asked(picture(), mask=mask_of(size=(8, 16)))
    with pytest.raises(ValueError, match="the mask is 8x16, the picture 16x16"):
        canvas_of(edit, album, 16, 16)
    with pytest.raises(ValueError, match="request is for 8x8, but the canvas is 16x16"):
        canvas_of(replace(edit, mask=None), album, 8, 8)


def changed(request: Request, **fields: Any) -> Request:
    return replace(request, **fields)


def test_what_is_no_way(pipe: Pipeline) -> None:
    edit, album = asked(picture(), strength=1.0)
    here = Blend(share=0.5, picture=edit.source)
    plain = pipe.request("a cat", seed=0, sampler="ddim")
    for wrong, words in (
        (changed(plain, blend=Blend(share=0.5)), "nothing at the other end"),
        (changed(plain, blend=here), "give the first"),
        (changed(plain, blend=Blend(share=0.5, prompt="x"), edit=edit), "starts from noise"),
        (changed(plain, blend=here, edit=replace(edit, strength=0.5)), "leave mask, extend and strength out"),
        (changed(plain, blend=here, edit=edit, sampler="ancestral"), "without fresh noise"),
        (changed(plain, blend=here, edit=edit, eta=0.5), "without fresh noise"),
    ):
        with pytest.raises(ValueError, match=words):
            list(pipe.run([wrong], album=album))
    with pytest.raises(ValueError, match="share of the way"):
        Blend(share=1.5, prompt="x")
    with pytest.raises(ValueError, match="fit belongs to pictures"):
        pipe.between("a cat", "x", fit="crop")
