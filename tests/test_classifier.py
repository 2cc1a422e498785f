"""Classifiers: log-probabilities at any level of any schedule, how prompts name classes, and their form on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.classifier import (
    Classifier,
    ClassifierConfig,
    build_classifier,
    class_named,
    load_classifier,
    save_classifier,
)
from unstir.conditioning.text import WordReader
from unstir.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow, VarianceExploding
from unstir.model import ModelConfig, build, load_model, save_model
from unstir.nn import DiTConfig
from unstir.nn.encoder import EncoderConfig
from unstir.nn.text import TextConfig

CLASSES = ("cat", "dog", "red deer")
NETWORK = EncoderConfig(outputs=3, width=8, multipliers=(1, 2), blocks=1)
CONFIG = ClassifierConfig(classes=CLASSES, network=NETWORK, size=8)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    made = build_classifier(CONFIG)
    with torch.no_grad():
        for weight in made.network.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made


def at(t: float | list[float]) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def test_probabilities_add_up_and_one_of_them_is_asked_for(classifier: Classifier) -> None:
    x, level = torch.randn(4, 3, 8, 8), Cosine().at(at([0.1, 0.3, 0.7, 1.0]))
    every = classifier.log_probs(x, level)
    torch.testing.assert_close(every.exp().sum(1), torch.ones(4))
    classes = torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(classifier.log_prob(x, level, classes), every[torch.arange(4), classes])


def test_its_gradient_is_that_of_the_log_probability(classifier: Classifier) -> None:
    """Central differences along a random direction, in float64; a sample's gradient is its own."""
    double = replace(classifier, network=classifier.network.double())
    x, way = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 3, 8, 8).double()
    level, classes = Cosine().at(at(0.4)), torch.tensor([0, 2])
    variable = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(double.log_prob(variable, level, classes).sum(), variable)
    step = 1e-5
    above, below = (double.log_prob(x + sign * step * way, level, classes) for sign in (1, -1))
    torch.testing.assert_close((gradient * way).flatten(1).sum(1), (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("other", [LinearBeta(), RectifiedFlow(), VarianceExploding()])
def test_a_level_of_another_schedule_means_the_same(classifier: Classifier, other: Any) -> None:
    """At one log-SNR, schedules differ by a factor on x_t, which the classifier divides out."""
    own = Cosine().at(at([0.3, 0.6]))
    theirs = other.at(other.time_of(own.log_snr))
    torch.testing.assert_close(theirs.log_snr, own.log_snr, rtol=0, atol=1e-6)
    x0, noise = torch.randn(2, 2, 3, 8, 8)
    answers = [
        classifier.log_probs(
            level.alpha.float().view(-1, 1, 1, 1) * x0 + level.sigma.float().view(-1, 1, 1, 1) * noise, level
        )
        for level in (own, theirs)
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


def test_the_level_matters(classifier: Classifier) -> None:
    x = torch.randn(2, 3, 8, 8)
    answers = [classifier.log_probs(x, Cosine().at(at(t))) for t in (0.2, 0.8)]
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_both_ends_have_finite_answers(classifier: Classifier, t: float) -> None:
    assert torch.isfinite(classifier.log_probs(torch.randn(2, 3, 8, 8), RectifiedFlow().at(at(t)))).all()


def test_a_picture_is_judged_alone_as_in_company(classifier: Classifier) -> None:
    x, level = torch.randn(3, 3, 8, 8), Cosine().at(at([0.1, 0.5, 0.9]))
    together = classifier.log_probs(x, level)
    for i in range(3):
        torch.testing.assert_close(classifier.log_probs(x[i : i + 1], level[i : i + 1]), together[i : i + 1])


def test_the_answer_has_the_type_of_what_is_asked(classifier: Classifier) -> None:
    assert classifier.log_probs(torch.zeros(2, 3, 8, 8).double(), Cosine().at(at(0.5))).dtype == torch.float64


def test_one_that_saw_clean_pictures_alone_judges_no_others(classifier: Classifier) -> None:
    clean = replace(classifier, config=replace(CONFIG, is_clean=True))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(clean.log_probs(x, Cosine().at(at(0.0))), classifier.log_probs(x, Cosine().at(at(0.0))))
    for level in (Cosine().at(at(0.01)), Cosine().at(at([0.0, 0.5]))):
        with pytest.raises(ValueError, match="clean pictures alone"):
            clean.log_prob(x, level, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        ("a cat", 0),
        ("Picture of a CAT!", 0),
        ("dog", 1),
        ("the red deer, an icon", 2),
        ("a cat in the category of pets", 0),
    ],
)
def test_a_prompt_names_a_class(classifier: Classifier, prompt: str, number: int) -> None:
    assert classifier.class_of(prompt) == number


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a horse", "names no class; name one of cat, dog, red deer"),
        ("", "names no class"),
        ("a category", "names no class"),
        ("a bobcat", "names no class"),
        ("deer", "names no class"),
        ("a cat and a dog", "names 2 classes; name one of"),
    ],
)
def test_a_prompt_that_names_no_class_or_several_is_refused(classifier: Classifier, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.class_of(prompt)


def test_of_names_within_each_other_the_longer_is_meant() -> None:
    names = ("deer", "red deer", "cat")
    assert class_named("a red deer", names) == 1
    assert class_named("a deer", names) == 0
    with pytest.raises(ValueError, match="names 3 classes"):
        class_named("a red deer and a cat", names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("cat",)}, "two classes or more"),
        ({"classes": ()}, "two classes or more"),
        ({"classes": ("cat", "dog", " ")}, "a name of its own"),
        ({"classes": ("cat", "dog", "Cat ")}, "a name of its own"),
        ({"classes": ("cat", "dog")}, "2 classes need a network with as many outputs, got 3"),
        ({"size": 7}, "multiples of 2, got size 7"),
        ({"size": 0}, "multiples of 2, got size 0"),
    ],
)
def test_what_is_no_classifier_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.fixture
def saved(tmp_path: Path, classifier: Classifier) -> Path:
    save_classifier(replace(classifier, training={"images_seen": 7}), tmp_path / "model")
    return tmp_path / "model"


def test_it_comes_back_as_it_was(saved: Path, classifier: Classifier) -> None:
    state = torch.get_rng_state()
    again = load_classifier(saved)
    assert torch.equal(torch.get_rng_state(), state), "loading must not move anybody's random stream"
    assert again.config == CONFIG
    assert again.training == {"images_seen": 7}
    assert len(again.checksum) == 64
    assert again.num_parameters == classifier.num_parameters
    assert not any(weight.requires_grad for weight in again.network.parameters())
    x, level = torch.randn(2, 3, 8, 8), Cosine().at(at(0.5))
    assert torch.equal(again.log_probs(x, level), classifier.log_probs(x, level))


def test_saving_again_replaces_and_a_foreign_folder_is_kept(saved: Path, classifier: Classifier) -> None:
    save_classifier(replace(classifier, training={"images_seen": 8}), saved)
    assert load_classifier(saved).training == {"images_seen": 8}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    other = saved.parent / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no model folder"):
        save_classifier(classifier, other)
    assert (other / "letter.txt").read_text() == "dear"


def test_a_model_and_a_classifier_refuse_each_others_folders(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a classifier, not a model that draws"):
        load_model(saved)
    text = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
    network = DiTConfig(size=8, patch=4, width=16, depth=1, heads=2, text=text)
    model = build(ModelConfig(network=network, size=8), WordReader.train(["a cat"], vocabulary=300, max_tokens=8))
    save_model(model, tmp_path / "draws")
    with pytest.raises(ValueError, match="holds a model that draws, not a classifier"):
        load_classifier(tmp_path / "draws")


def test_damage_is_told(saved: Path) -> None:
    description = json.loads((saved / "unstir.json").read_text())
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="is damaged"):
        load_classifier(saved)
    (saved / "model.safetensors").write_bytes(weights)
    (saved / "unstir.json").write_text(json.dumps({**description, "kind": "oracle"}))
    with pytest.raises(ValueError, match="holds oracle, not a classifier"):
        load_classifier(saved)
    (saved / "unstir.json").write_text(json.dumps({**description, "colour": 1}))
    with pytest.raises(ValueError, match=r"unstir\.json: no setting 'colour'"):
        load_classifier(saved)
    (saved / "unstir.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="update unstir"):
        load_classifier(saved)
    (saved / "unstir.json").write_text(json.dumps(description))
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not complete"):
        load_classifier(saved)
    with pytest.raises(FileNotFoundError, match="there is no classifier"):
        load_classifier(saved / "nowhere")
