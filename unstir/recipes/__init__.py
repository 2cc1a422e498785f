"""Recipes: complete configurations, as functions."""

from __future__ import annotations

from collections.abc import Callable

from unstir.recipes.cifar10 import cifar10 as cifar10
from unstir.recipes.emoji import emoji as emoji
from unstir.recipes.tiny import tiny as tiny
from unstir.training.run import RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {"cifar10": cifar10, "emoji": emoji, "tiny": tiny}
