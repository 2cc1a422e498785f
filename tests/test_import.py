"""Importing unstir is light, and drawing needs no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unstir
from unstir.conditioning.text import WordReader
from unstir.model import ModelConfig, build, load_model, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "numpy", "PIL", "pydantic", "tokenizers", "safetensors", "pyarrow", "transformers", "diffusers")
TEXTS = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "stuvwxyz"]
TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
CONFIG = ModelConfig(size=16, network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT))

DRAW = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("something opens a network connection")

class Refused(socket.socket):
    __init__ = refuse

socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
sys.addaudithook(lambda event, _: refuse() if event.startswith("socket.") else None)

import unstir
pipe = unstir.load(sys.argv[1], device="cpu")
picture = pipe.sample("ab st", seed=5, steps=3, negative="x")[0]
before = pipe.model.reader.tokenizer.to_str()
from unstir.conditioning.text import WordReader
texts = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "stuvwxyz"]
assert WordReader.train(texts, vocabulary=300, max_tokens=8).tokenizer.to_str() == before, "other words"
foreign = {"transformers", "torchvision", "accelerate", "diffusers", "requests", "huggingface_hub", "cyclopts"}
assert not foreign & sys.modules.keys(), foreign & sys.modules.keys()
print(picture.size, picture.tobytes().hex())
"""


def run(code: str, *arguments: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints; without any home to find caches in."""
    environment = {**os.environ, "HOME": str(cwd), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_importing_unstir_imports_nothing_heavy() -> None:
    """`import unstir` does not import torch, nor anything else that takes time."""
    assert run(f"import sys, unstir; print(sorted(set({HEAVY}) & sys.modules.keys()))") == "[]"


def test_the_public_names() -> None:
    """All that `__all__` promises is there, and nothing answers to other names."""
    for name in unstir.__all__:
        assert getattr(unstir, name) is not None
    assert callable(unstir.load)
    assert unstir.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="lod"):
        unstir.lod  # type: ignore[attr-defined]  # noqa: B018


def test_drawing_needs_no_network_and_no_process_differs(tmp_path: Path) -> None:
    """With every socket blocked a fresh process loads a model and draws, pixel for pixel what this one draws.

    It learns the same words of the same texts too.
    """
    torch.manual_seed(0)
    model = build(CONFIG, WordReader.train(TEXTS, vocabulary=300, max_tokens=8))
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.normal_(std=0.2)
    save_model(model, tmp_path / "model")
    here = Pipeline(load_model(tmp_path / "model"), device="cpu").sample("ab st", seed=5, steps=3, negative="x")[0]
    assert run(DRAW, str(tmp_path / "model"), cwd=tmp_path) == f"{here.size} {here.tobytes().hex()}"
