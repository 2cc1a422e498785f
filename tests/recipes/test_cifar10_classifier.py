"""The classifiers of small photographs: they fit the recipe whose pictures they judge, and each other."""

from __future__ import annotations

import json

import pytest

from unstir.classifier import build_classifier
from unstir.config import from_dict, to_dict
from unstir.recipes import CLASSIFIER_RECIPES, RECIPES, cifar10, cifar10_classifier, cifar10_features
from unstir.training.classifier import ClassifierRun


@pytest.mark.parametrize("name", CLASSIFIER_RECIPES)
def test_every_recipe_builds_and_survives_json(name: str) -> None:
    config = CLASSIFIER_RECIPES[name]()
    assert config.recipe == name
    assert name not in RECIPES
    assert from_dict(ClassifierRun, json.loads(json.dumps(to_dict(config)))) == config
    classifier = build_classifier(config.classifier)
    assert classifier.num_parameters < 500_000
    assert [classifier.class_of(f"a {label}") for label in config.classifier.classes] == list(range(10))


def test_the_one_that_guides_knows_the_levels_of_the_model_that_it_guides() -> None:
    guides, model = cifar10_classifier().classifier, cifar10().model
    assert guides.schedule == model.schedule
    assert guides.size == model.size
    assert not guides.is_clean


def test_the_judge_is_another_run_of_the_same_network() -> None:
    guides, judges = cifar10_classifier(), cifar10_features()
    assert judges.classifier.is_clean
    assert judges.classifier.network == guides.classifier.network
    assert judges.training.seed != guides.training.seed
