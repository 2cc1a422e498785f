"""Steering: what a request's guidance makes of a model's beliefs, what it needs, and that a picture remembers it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.classifier import Classifier, ClassifierConfig, build_classifier, save_classifier
from unstir.codec import AutoencoderConfig, BitPlanes, Identity
from unstir.condition import Condition
from unstir.conditioning.text import WordReader
from unstir.config import from_dict, to_dict
from unstir.diffusion.guidance import (
    clip,
    dynamic_threshold,
    extrapolate,
    guided,
    pair_of,
    projected,
    rescale,
    zero_star,
)
from unstir.diffusion.parameterization import PredictBit
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Cosine, Level, Reciprocal, RectifiedFlow
from unstir.diffusion.tilting import steered
from unstir.model import Model, ModelConfig, SamplingDefaults, build, save_model
from unstir.nn import DiTConfig
from unstir.nn.encoder import EncoderConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline, Request, Result
from unstir.steering import METHODS, Steering, Told, denoiser_of, process_of, require_fit

TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
READER = WordReader.train(["red heart", "blue star", "a cat", "green"], vocabulary=300, max_tokens=8)
NETWORK = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT)
CONFIG = ModelConfig(size=16, network=NETWORK, sampling=SamplingDefaults(steps=3, guidance_scale=3.0))
X_T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LEVEL = RectifiedFlow().at(torch.tensor(0.6, dtype=torch.float64))


def make(config: ModelConfig = CONFIG, seed: int = 3) -> Model:
    """A model that listens to its words."""
    model = build(config, READER)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            scale = 3.0 if "embedding" in name or "pooled" in name else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / math.sqrt(fan_in))
    model.denoiser.eval().requires_grad_(False)
    return model


def make_classifier(*, is_clean: bool = False) -> Classifier:
    """One with an opinion: its head is not zero."""
    network = EncoderConfig(outputs=2, width=8, multipliers=(1, 2))
    config = ClassifierConfig(network=network, classes=("heart", "star"), size=16, is_clean=is_clean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = build_classifier(config)
        torch.nn.init.normal_(classifier.network.head.weight)
    classifier.network.eval().requires_grad_(False)
    return classifier


@pytest.fixture(scope="module")
def model() -> Model:
    return make()


@pytest.fixture(scope="module")
def words() -> Condition:
    return READER.read(["red heart", "blue star"])[0]


def belief(model: Model, steering: Steering, told: Told) -> Tensor:
    with torch.no_grad():
        return denoiser_of(model, steering, told)(X_T, LEVEL).x0


def pairs(model: Model, words: Condition, combine: Any, *correct: Any) -> Tensor:
    with torch.no_grad():
        return guided(model.denoiser.given_pair(words, words.null()), combine, *correct)(X_T, LEVEL).x0


# --- what it makes of a model ---


def test_without_steering_it_is_classifier_free_guidance_and_a_clip(model: Model, words: Condition) -> None:
    """Bit for bit; without the clip where the model has none."""
    plain = extrapolate(model.process, 3.0)
    assert torch.equal(belief(model, Steering(), Told(strong=words, scale=3.0)), pairs(model, words, plain, clip()))
    free = make(replace(CONFIG, sampling=SamplingDefaults(clip=False)))
    assert torch.equal(belief(free, Steering(), Told(strong=words, scale=3.0)), pairs(model, words, plain))
    assert pairs(model, words, plain).abs().max() > 1


LATENT = replace(
    CONFIG, codec=AutoencoderConfig(latent_channels=3, width=4, multipliers=(1,), blocks=1, groups=2, scale=0.5)
)


def test_latents_have_no_range(words: Condition) -> None:
    """Where a model draws in them, nothing is clipped, and a threshold is refused."""
    latent = make(LATENT)
    assert LATENT.sampling.clip
    plain = extrapolate(latent.process, 3.0)
    assert torch.equal(belief(latent, Steering(), Told(strong=words, scale=3.0)), pairs(latent, words, plain))
    with pytest.raises(ValueError, match="latents, which have no range"):
        require_fit(latent, Steering(threshold=0.9), weak=None, classifier=None)
    with pytest.raises(ValueError, match="draws in another space"):
        require_fit(latent, Steering(classifier="c"), weak=None, classifier=make_classifier())


def test_refuses_a_weak_model_with_another_codec() -> None:
    """Also where only its weights are others."""
    torch.manual_seed(0)
    latent, other = make(LATENT), make(LATENT)
    require_fit(latent, Steering(weak="w"), weak=replace(other, codec=latent.codec), classifier=None)
    with pytest.raises(ValueError, match="codec of the weak model w has other weights"):
        require_fit(latent, Steering(weak="w"), weak=other, classifier=None)


def test_every_method_is_the_combine_of_its_name(model: Model, words: Condition) -> None:
    told, process = Told(strong=words, scale=3.0), model.process
    expected = {
        "plain": extrapolate(process, 3.0),
        "projected": projected(process, 3.0),
        "zero_star": zero_star(process, 3.0),
    }
    assert expected.keys() == METHODS.keys()
    drawn = {name: belief(model, Steering(method=name), told) for name in METHODS}
    for name, combine in expected.items():
        assert torch.equal(drawn[name], pairs(model, words, combine, clip()))
    assert not torch.equal(drawn["plain"], drawn["projected"])
    assert not torch.equal(drawn["plain"], drawn["zero_star"])


def test_rescaling_and_thresholds_are_what_they_say(model: Model, words: Condition) -> None:
    """The dynamic threshold takes the place of the clip, also without guidance."""
    told, plain = Told(strong=words, scale=3.0), extrapolate(model.process, 3.0)
    for view in ("v", "x0"):
        expected = pairs(model, words, rescale(plain, 0.7, view), clip())
        assert torch.equal(belief(model, Steering(rescale=0.7, view=view), told), expected)
    expected = pairs(model, words, plain, dynamic_threshold(0.9))
    assert torch.equal(belief(model, Steering(threshold=0.9), told), expected)
    alone = belief(model, Steering(threshold=0.5), Told(strong=words))
    with torch.no_grad():
        plain_belief = model.denoiser.given(words)(X_T, LEVEL)
    assert torch.equal(alone, dynamic_threshold(0.5)(X_T, LEVEL, plain_belief).x0)


def test_at_scale_one_the_model_is_asked_once(model: Model, words: Condition) -> None:
    """One row a picture, whatever the kind of guidance (C23)."""
    rows: list[int] = []
    network: Any = model.denoiser.network
    handle = network.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0]))
    try:
        for name in METHODS:
            assert torch.equal(
                belief(model, Steering(method=name, rescale=0.5), Told(strong=words)),
                belief(model, Steering(), Told(strong=words)),
            )
    finally:
        handle.remove()
    assert rows == [2] * 6


def test_a_weak_model_takes_the_place_of_the_null(model: Model, words: Condition) -> None:
    weak = make(seed=4).denoiser.given(words)
    told = Told(strong=words, scale=2.0, other=weak)
    with torch.no_grad():
        pair = pair_of(model.denoiser.given(words), weak)
        expected = guided(pair, extrapolate(model.process, 2.0), clip())(X_T, LEVEL).x0
    assert torch.equal(belief(model, Steering(), told), expected)


def log_likelihood(x_t: Tensor, level: Level) -> Tensor:
    return (torch.sin(x_t)).flatten(1).sum(1)


def test_a_classifier_leads_the_guided_belief_before_it_is_clipped(model: Model, words: Condition) -> None:
    steering = Steering(classifier="c", classifier_scale=0.5)
    told = Told(strong=words, scale=3.0, log_likelihood=log_likelihood)
    plain = pairs(model, words, extrapolate(model.process, 3.0))
    with torch.no_grad():
        expected = steered(lambda *_: Estimate(x0=plain), log_likelihood, 0.5)(X_T, LEVEL).x0.clamp(-1, 1)
    assert torch.equal(belief(model, steering, told), expected)
    assert not torch.equal(expected, plain.clamp(-1, 1))
    assert process_of(model, steering, told) is model.process
    alone = belief(model, steering, replace(told, scale=1.0))
    assert not torch.equal(alone, belief(model, steering, Told(strong=words)))


def test_a_classifier_leans_on_the_reverse_step_where_one_is_drawn(model: Model, words: Condition) -> None:
    """Then the belief is not led as well."""
    steering = Steering(classifier="c", classifier_scale=0.5)
    told = Told(strong=words, scale=3.0, log_likelihood=log_likelihood, is_tilted=True)
    assert torch.equal(belief(model, steering, told), belief(model, Steering(), replace(told, log_likelihood=None)))
    lower = RectifiedFlow().at(torch.tensor(0.5, dtype=torch.float64))
    laws = [
        p.reverse(X_T, LEVEL, lower, Estimate(x0=X_T / 2)) for p in (process_of(model, steering, told), model.process)
    ]
    variance = (laws[1].log_prob(laws[1].mean) + 0.5 * math.log(2 * math.pi)).mul(-2).exp()
    torch.testing.assert_close(laws[0].mean, laws[1].mean + 0.5 * variance * torch.cos(laws[1].mean))


def test_the_interval_holds_for_the_classifier_too(model: Model, words: Condition) -> None:
    steering, far = Steering(classifier="c"), (50.0, 60.0)
    told = Told(strong=words, scale=3.0, interval=far, log_likelihood=log_likelihood)
    assert torch.equal(belief(model, steering, told), belief(model, Steering(), Told(strong=words)))
    lower = RectifiedFlow().at(torch.tensor(0.5, dtype=torch.float64))
    leaning = process_of(model, steering, replace(told, is_tilted=True))
    laws = [p.reverse(X_T, LEVEL, lower, Estimate(x0=X_T / 2)) for p in (leaning, model.process)]
    assert torch.equal(laws[0].mean, laws[1].mean)


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "projectd"}, "did you mean projected.*plain, projected, zero_star"),
        ({"view": "noize"}, "did you mean noise.*x0, noise, v"),
        ({"rescale": 1.5}, "fraction from 0"),
        ({"rescale": -0.1}, "fraction from 0"),
        ({"rescale": math.nan}, "fraction from 0"),
        ({"threshold": 0.0}, "quantile"),
        ({"threshold": 1.01}, "quantile"),
        ({"threshold": math.nan}, "quantile"),
        ({"classifier": "c", "classifier_scale": math.inf}, "finite"),
        ({"classifier_scale": 2.0}, "has no classifier"),
    ],
)
def test_refuses_what_is_no_guidance(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steering(**fields)


BITS = ModelConfig(
    size=16,
    process="binomial",
    schedule=Reciprocal(),
    parameterization=PredictBit(),
    codec=BitPlanes(),
    network=replace(NETWORK, channels=24, out_channels=24),
    sampling=SamplingDefaults(sampler="ancestral"),
)


@pytest.mark.parametrize(
    ("config", "steering", "message"),
    [
        (CONFIG, Steering(rescale=0.5, view="noise"), "ends without signal"),
        (replace(CONFIG, schedule=Reciprocal()), Steering(method="zero_star"), "finite velocity"),
        (BITS, Steering(method="zero_star"), "zero_star has no meaning"),
        (BITS, Steering(rescale=0.5), "rescaling has no meaning"),
        (BITS, Steering(threshold=0.9), "threshold has no meaning"),
        (BITS, Steering(classifier="c"), "classifier has no meaning"),
    ],
)
def test_refuses_what_a_model_cannot_be_steered_by(config: ModelConfig, steering: Steering, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_fit(build(config, READER), steering, weak=None, classifier=None)


@pytest.mark.parametrize("method", ["plain", "projected"])
def test_bits_can_be_guided(method: str) -> None:
    require_fit(build(BITS, READER), Steering(method=method), weak=None, classifier=None)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (replace(CONFIG, schedule=Cosine()), "schedule"),
        (BITS, "schedule"),
        (replace(BITS, schedule=RectifiedFlow()), "process"),
        (replace(CONFIG, size=32, network=replace(NETWORK, size=32)), "size"),
    ],
)
def test_refuses_a_weak_model_of_another_kind(model: Model, config: ModelConfig, what: str) -> None:
    """Only its configuration is looked at."""
    weak = replace(model, config=config)
    with pytest.raises(ValueError, match=f"the weak model w has another {what}"):
        require_fit(model, Steering(weak="w"), weak=weak, classifier=None)


def test_a_smaller_or_earlier_model_may_be_weak(model: Model) -> None:
    smaller = replace(CONFIG, network=replace(NETWORK, width=16), sampling=SamplingDefaults())
    require_fit(model, Steering(weak="w"), weak=replace(model, config=smaller), classifier=None)


def test_refuses_a_classifier_that_cannot_judge(model: Model) -> None:
    with pytest.raises(ValueError, match="clean pictures alone"):
        require_fit(model, Steering(classifier="c"), weak=None, classifier=make_classifier(is_clean=True))
    latent = replace(model, config=replace(CONFIG, codec=BitPlanes()))
    with pytest.raises(ValueError, match="draws in another space"):
        require_fit(latent, Steering(classifier="c"), weak=None, classifier=make_classifier())
    assert isinstance(CONFIG.codec, Identity)
    require_fit(model, Steering(classifier="c"), weak=None, classifier=make_classifier())


def test_refuses_other_weights_than_those_asked_for(model: Model) -> None:
    weak = replace(model, checksum="a" * 64)
    require_fit(model, Steering(weak="w", weights=("a" * 64, "")), weak=weak, classifier=None)
    with pytest.raises(ValueError, match=r"w has other weights \(sha256 aaaaaaaaaa\.\.\.\)"):
        require_fit(model, Steering(weak="w", weights=("b" * 64, "")), weak=weak, classifier=None)


# --- requests ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weak model and a classifier on disk."""
    folder = tmp_path_factory.mktemp("models")
    save_model(make(seed=4), folder / "weak")
    save_model(make(replace(CONFIG, schedule=Cosine())), folder / "foreign")
    save_classifier(make_classifier(), folder / "classifier")
    return folder


@pytest.fixture(scope="module")
def pipe(model: Model) -> Pipeline:
    return Pipeline(model, name="tiny", device="cpu")


def drawn(pipe: Pipeline, requests: list[Request]) -> list[Result]:
    return [item for item in pipe.run(requests) if isinstance(item, Result)]


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "projected": lambda folder: {"steering": Steering(method="projected")},
    "zero_star": lambda folder: {"steering": Steering(method="zero_star")},
    "rescale": lambda folder: {"steering": Steering(rescale=1.0, view="x0")},
    "threshold": lambda folder: {"steering": Steering(threshold=0.5)},
    "weak": lambda folder: {"steering": Steering(weak=str(folder / "weak"))},
    "classifier": lambda folder: {"steering": Steering(classifier=str(folder / "classifier"), classifier_scale=20.0)},
    "tilted": lambda folder: {
        "steering": Steering(classifier=str(folder / "classifier"), classifier_scale=20.0),
        "sampler": "ancestral",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_and_is_drawn_again_from_what_a_picture_remembers(
    pipe: Pipeline, folder: Path, kind: str
) -> None:
    settings = KINDS[kind](folder)
    plain = pipe.sample(["red heart", "blue star"], seed=1, sampler=settings.get("sampler"))
    results = drawn(pipe, pipe.requests(["red heart", "blue star"], seed=1, **settings))
    assert all(r.picture.tobytes() != p.tobytes() for r, p in zip(results, plain, strict=True))
    remembered = [from_dict(Request, to_dict(result.request)) for result in results]
    assert remembered == [result.request for result in results]
    for again, result in zip(drawn(pipe, remembered), results, strict=True):
        assert again.picture.tobytes() == result.picture.tobytes()


def test_a_picture_does_not_depend_on_its_neighbours(pipe: Pipeline, folder: Path) -> None:
    """Norms, deviations, quantiles and gradients are each picture's own."""
    for kind in KINDS:
        settings = KINDS[kind](folder)
        together = pipe.sample(["red heart", "blue star"], seed=1, **settings)
        alone = [pipe.sample(prompt, seed=1 + i, **settings)[0] for i, prompt in enumerate(["red heart", "blue star"])]
        for one, other in zip(together, alone, strict=True):
            worst = max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
            assert worst <= 1, kind


def test_old_recipes_have_no_steering(pipe: Pipeline) -> None:
    """What was drawn before there was any is drawn the same."""
    (result,) = drawn(pipe, pipe.requests(["a cat"], seed=1))
    old = to_dict(result.request)
    del old["steering"]
    assert from_dict(Request, old) == result.request


def test_a_request_remembers_the_weights_it_was_drawn_with(pipe: Pipeline, folder: Path) -> None:
    request = pipe.request("red heart", seed=1, **KINDS["weak"](folder))
    assert len(request.steering.weights[0]) == 64
    assert request.steering.weights[1] == ""
    changed = replace(request, steering=replace(request.steering, weights=("0" * 64, "")))
    with pytest.raises(ValueError, match="has other weights"):
        pipe.check(changed)


def test_pictures_of_different_guidance_are_drawn_apart(pipe: Pipeline) -> None:
    requests = [
        pipe.request("red heart", seed=1),
        pipe.request("red heart", seed=1, steering=Steering(method="projected")),
    ]
    assert [result.request.rows for result in drawn(pipe, requests)] == [1, 1]


def test_a_model_without_a_null_can_be_guided_by_a_weaker_one(folder: Path) -> None:
    nullless = Pipeline(make(replace(CONFIG, condition_drop=0.0)), device="cpu")
    with pytest.raises(ValueError, match="cannot be guided"):
        nullless.request("red heart", guidance_scale=2.0)
    assert nullless.sample("red heart", seed=1, guidance_scale=2.0, **KINDS["weak"](folder))


def test_a_weak_model_is_not_asked_at_guidance_one(pipe: Pipeline, folder: Path) -> None:
    """And the user is told that it does nothing there."""
    (result,) = drawn(pipe, pipe.requests(["a cat"], seed=1, guidance_scale=1.0, **KINDS["weak"](folder)))
    assert result.picture.tobytes() == pipe.sample("a cat", seed=1, guidance_scale=1.0)[0].tobytes()
    assert any("no influence at guidance 1" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"weak": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"classifier": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"weak": "foreign"}, ValueError, "another schedule"),
        ({"weak": "classifier"}, ValueError, "classifier"),
        ({"classifier": "weak"}, ValueError, "model"),
    ],
)
def test_refuses_models_that_are_none(
    pipe: Pipeline, folder: Path, fields: dict[str, str], error: type[Exception], message: str
) -> None:
    named = {name: str(folder / where) for name, where in fields.items()}
    with pytest.raises(error, match=message):
        pipe.request("red heart", steering=Steering(**named))


def test_refuses_a_prompt_that_names_no_class(pipe: Pipeline, folder: Path) -> None:
    with pytest.raises(ValueError, match="names no class"):
        pipe.request("a cat", **KINDS["classifier"](folder))
