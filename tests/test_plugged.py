"""Anybody's network: the module of the documents trains, is saved, loaded and sampled by its name; misfits are told."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unstir
from unstir import plugged
from unstir.cli.app import run
from unstir.condition import Condition
from unstir.conditioning.text import WordReader
from unstir.config import from_dict, override, to_dict
from unstir.diffusion.parameterization import LearnedRange
from unstir.diffusion.schedule import Cosine
from unstir.model import ModelConfig, build, load_model, save_model, text_of
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline, load
from unstir.plugged import PLUGGED, Plugged, is_plugged, plug, plug_from_environment

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "networks.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()
]
READER = WordReader.train(["red blue cat"], vocabulary=300, max_tokens=8)
SHORT = shlex.split("--model.size 8 --batch 8 --training.precision float32 --device cpu --model.sampling.steps 2")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a test plugs in is gone after it."""
    before = dict(PLUGGED)
    yield
    PLUGGED.clear()
    PLUGGED.update(before)
    plugged._run_once.cache_clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and the files of the document, where commands are typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 255 - 40 * i, 90)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"colour {i}\n")
    for program in PROGRAMS:
        if name := re.match(r"# (\w+\.py)\n", program):
            (tmp_path / name[1]).write_text(program)
    return tmp_path


def fresh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, which knows nothing of what was plugged in here."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=own, check=False)


class Plain(nn.Module):
    """A module that is told no words, and says what it was made with."""

    def __init__(self, width: int = 4, gain: float = 0.5, kernels: tuple[int, ...] = (3, 1)) -> None:
        super().__init__()
        self.gain, self.seen = gain, (width, kernels)
        sizes = [3, *[width] * (len(kernels) - 1), 3]
        self.layers = nn.Sequential(
            *(nn.Conv2d(a, b, k, padding="same") for a, b, k in zip(sizes, sizes[1:], kernels, strict=False))
        )

    def forward(self, x: Tensor, scalar: Tensor) -> Tensor:
        return self.layers(x) * (1 + self.gain * (scalar / 1000).view(-1, 1, 1, 1))


TEXT = TextConfig(vocabulary=300, max_tokens=8, width=8, depth=1, heads=2)


class Reading(nn.Module):
    """A module that is told words, and looks at all that it is told of them."""

    def __init__(self, text: TextConfig = TEXT) -> None:
        super().__init__()
        self.of_pooled, self.of_tokens = nn.Linear(text.width, 3), nn.Linear(text.width, 3)
        self.told: list[Condition] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        assert condition.token_mask is not None
        self.told.append(condition)
        mask = condition.token_mask[..., None]
        tokens = (self.of_tokens(condition.tokens) * mask).sum(1)
        return x + (self.of_pooled(condition.pooled) + tokens)[:, :, None, None]


def config_of(name: str, **settings: object) -> ModelConfig:
    return from_dict(ModelConfig, {"size": 8, "network": {"kind": name, **settings}})


# The document, executed.


def test_the_document_from_the_command_line_to_a_fresh_process(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, train, sample, check = COMMANDS
    assert exported[0] == "export"
    variable, _, file = exported[1].partition("=")
    monkeypatch.setenv(variable, file)
    assert run([*train[1:], *SHORT, "--images", "32"]) == 0, capsys.readouterr().err
    assert "told no words" in capsys.readouterr().err
    model = json.loads((place / "runs/mine/model/unstir.json").read_text())
    assert model["network"] == {"kind": "mine", "width": 32}
    assert "mine.py" not in (place / "runs/mine/model/unstir.json").read_text()

    drawn = fresh("-m", "unstir", *sample[1:], "--seed", "1", "--device", "cpu")
    assert drawn.returncode == 0, drawn.stderr
    assert "prompts decide nothing" in drawn.stderr
    [picture] = list((place / "drawn").glob("*.png"))

    program = PROGRAMS[1].replace('load("runs/mine")', 'load("runs/mine", device="cpu")')
    again = fresh("-c", f"{program}\npicture.save('again.png')", UNSTIR_PLUG="", PYTHONPATH=f"{ROOT}:{place}")
    assert again.returncode == 0, again.stderr
    assert Image.open("again.png").tobytes() == Image.open(picture).tobytes()

    assert run(["train", "--out", "runs/mine", "--resume", "--images", "48", "--device", "cpu"]) == 0
    assert check[:2] == ["unstir", "check"]


def test_a_model_of_an_unknown_network_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug("mine_alone", Plain)
    save_model(build(config_of("mine_alone"), READER), place / "m")
    del PLUGGED["mine_alone"]
    done = fresh("-m", "unstir", "sample", "x", "--model", "m")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "unknown kind 'mine_alone'" in done.stderr
    assert "unstir.plug" in done.stderr
    assert "UNSTIR_PLUG" in done.stderr


def test_the_network_that_is_told_words_draws_by_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on colours, the prompt decides the colour; and its guidance has a null."""
    monkeypatch.setenv("UNSTIR_PLUG", "told.py")
    words = shlex.split("--model.network told --model.network.text.depth 1 --model.network.text.vocabulary 300")
    more = ["--training.optimizer.learning_rate", "0.01", "--images", "1600", "--model.condition_drop", "0.2"]
    assert run(["train", "tiny", "--data", "pictures", "--out", "run", *words, *SHORT, *more]) == 0
    pipe = load("run", device="cpu")
    drawn = [pipe.sample(f"colour {i}", seed=3, guidance_scale=1.0, steps=8)[0] for i in (0, 5)]
    red = [sum(picture.tobytes()[::3]) / 64 for picture in drawn]
    assert red[1] - red[0] > 60
    assert pipe.request("colour 0").guidance_scale == 1.5


# What is plugged in.


def test_arguments_become_settings_that_are_stored(tmp_path: Path) -> None:
    plug("mine", Plain)
    config = config_of("mine", width=6, kernels=[1, 3])
    assert is_plugged(config.network)
    assert to_dict(config)["network"] == {"kind": "mine", "width": 6, "gain": 0.5, "kernels": [1, 3]}
    model = build(config, READER)
    assert model.denoiser.network.module.seen == (6, (1, 3))
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.config == config
    weights = model.denoiser.network.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in again.denoiser.network.state_dict().items())


def test_settings_are_set_by_path() -> None:
    plug("mine", Plain)
    config = override(ModelConfig(size=8), [("network", "mine"), ("network.width", "9")])
    assert config == config_of("mine", width=9)
    with pytest.raises(ValueError, match="no setting 'network.widht'; did you mean 'network.width'"):
        override(config, [("network.widht", "9")])
    with pytest.raises(ValueError, match="width: .*got 'wide'"):
        override(config, [("network.width", "wide")])


def test_a_function_and_a_dataclass_of_a_stranger_will_do() -> None:
    @dataclass(frozen=True)
    class Shape:
        width: int = 5

    def make(shape: Shape = Shape(), gain=0.25) -> nn.Module:
        return Plain(width=shape.width, gain=gain)

    make.__annotations__["shape"] = Shape  # it is local to this test
    plug("made", make)
    network: Any = build(config_of("made", shape={"width": 7}), READER).denoiser.network
    assert network.module.seen[0] == 7
    assert network.module.gain == 0.25


def test_words_are_read_before_the_module_sees_them_and_once_a_sampling() -> None:
    plug("reading", Reading)
    model = build(config_of("reading"), READER)
    network: Any = model.denoiser.network
    assert text_of(model.config).vocabulary == 300
    condition, _ = READER.read(["red cat", "blue"])
    network.module.told.clear()
    read = network.read(condition)
    x, scalar = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 500.0])
    assert torch.equal(network(x, scalar, read), network(x, scalar, condition))
    for told in network.module.told:
        assert told.words is None
        assert told.tokens.shape == (2, 8, 8)
        assert told.pooled.shape == (2, 8)
    null, other = network(x, scalar, condition.null()), network(x, scalar, READER.read(["cat", "cat"])[0].null())
    assert torch.equal(null, other)
    assert not torch.equal(null, network(x, scalar, condition))


def test_without_words_the_prompt_decides_nothing_and_nothing_is_asked_twice() -> None:
    plug("mine", Plain)
    model = build(config_of("mine"), READER)
    pipe = Pipeline(model, device="cpu")
    rows: list[int] = []
    network: Any = model.denoiser.network
    network.module.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    one, other = (pipe.sample([prompt] * 2, seed=1, steps=3) for prompt in ("red", "a blue cat"))
    assert [picture.tobytes() for picture in one] == [picture.tobytes() for picture in other]
    assert set(rows) == {2}
    results = list(pipe.run([pipe.request("red", seed=1, steps=2)]))
    assert results[-1].warnings == ("this model is told no words: prompts decide nothing, nor does guidance",)


def test_a_network_of_one_size_and_one_of_many() -> None:
    class Free(Plain):
        multiple = 4

    plug("fixed", Plain)
    plug("free", Free)
    fixed, free = (Pipeline(build(config_of(name), READER), device="cpu") for name in ("fixed", "free"))
    with pytest.raises(ValueError, match="draws 8x8 pictures"):
        fixed.request("red", width=16, height=8)
    assert free.sample("red", steps=2, width=16, height=4)[0].size == (16, 4)
    with pytest.raises(ValueError, match="multiples of 4"):
        free.request("red", width=6, height=8)


def test_channels_are_those_that_the_model_needs() -> None:
    """Self-conditioning gives twice as many, a learned variance takes twice as many; the module is told nothing."""

    class Counting(nn.Module):
        def __init__(self, channels: int = 3, out: int = 3) -> None:
            super().__init__()
            self.layer = nn.Conv2d(channels, out, 1)

        def forward(self, x: Tensor, scalar: Tensor) -> Tensor:
            return self.layer(x)

    plug("counting", Counting)
    config = config_of("counting", channels=6, out=6)
    config = replace(config, self_conditioned=True, schedule=Cosine(), parameterization=LearnedRange())
    network: Any = build(config, READER).denoiser.network
    assert (network.in_channels, network.out_channels) == (6, 6)


def test_the_same_place_may_plug_in_again_and_no_other() -> None:
    """As a cell of a notebook that is run twice."""
    plug("mine", Plain)
    plug("mine", Plain)
    with pytest.raises(ValueError, match="there is a network 'mine' already; plug yours in under another name"):
        plug("mine", Reading)


def test_numbers_that_are_not_floats_are_kept(tmp_path: Path) -> None:
    class Turning(Plain):
        def __init__(self, width: int = 4) -> None:
            super().__init__(width)
            self.register_buffer("order", torch.tensor([2**24 + 1]))
            self.register_buffer("turn", torch.tensor([1 + 2j]))

    plug("turning", Turning)
    model = build(config_of("turning"), READER)
    save_model(model, tmp_path / "m", dtype=torch.bfloat16)
    network: Any = load_model(tmp_path / "m").denoiser.network
    assert network.module.order.tolist() == [2**24 + 1]
    assert network.module.turn.tolist() == [1 + 2j]


# What does not fit.


def module_of(forward: Callable[..., object] | None, *parts: nn.Module) -> type[nn.Module]:
    """A class of modules with this forward."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

    if forward is not None:
        Made.forward = forward
    return Made


CONV = nn.Conv2d(3, 3, 1)


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    return module_of(lambda self, x, scalar: x, first, second)()


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (module_of(lambda self, x, scalar: x[:, :1], CONV), r"shape \(2, 3, 8, 8\) for x .*, got shape \(2, 1, 8, 8\)"),
        (module_of(lambda self, x, scalar: (x,), CONV), r"must give a tensor .* got a tuple"),
        (module_of(lambda self, x: x, CONV), r"cannot be called as forward\(x, scalar\) with x of shape .*TypeError"),
        (module_of(lambda self, x, scalar: x @ x[:1, :1, 0], CONV), r"cannot be called .*RuntimeError"),
        (module_of(lambda self, x, scalar: x, nn.BatchNorm2d(3)), "has a BatchNorm2d, .* take GroupNorm"),
        (module_of(lambda self, x, scalar: x), "has no weights"),
        (tied, "has the same weight under two names"),
        (lambda: nn.Linear(0, -1), "cannot be made .RuntimeError: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_serve_is_told_when_the_model_is_made(network: Any, sentence: str) -> None:
    plug("mine", network)
    with pytest.raises(ValueError, match=f"the network 'mine' .*{sentence.split('.*')[-1]}") as caught:
        build(config_of("mine"), READER)
    assert re.search(sentence, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_function_that_makes_no_module_is_told() -> None:
    plug("mine", lambda: 3)
    with pytest.raises(TypeError, match="the network 'mine' makes a int, expected a torch.nn.Module"):
        build(config_of("mine"), READER)


def test_a_multiple_is_a_number_of_pixels() -> None:
    class Wrong(Plain):
        multiple = 0

    plug("wrong", Wrong)
    with pytest.raises(ValueError, match="the network 'wrong' should say a number of pixels as its multiple, got 0"):
        build(config_of("wrong"), READER)


def with_argument(parameter: str) -> Callable[..., nn.Module]:
    """A function with this argument, as somebody's file would have it."""
    space: dict[str, Any] = {"nn": nn, "Any": Any, "TextConfig": TextConfig}
    exec(f"def make({parameter}): return nn.Identity()", space)
    return space["make"]


@pytest.mark.parametrize(
    ("name", "network", "sentence"),
    [
        ("dit", Plain, "there is a network 'dit' already"),
        ("my network", Plain, "one word of letters, digits and underscores, got 'my network'"),
        ("mine", 3, "a class of modules or a function that makes one, not a int"),
        ("mine", nn.Linear(2, 2), "a class of modules or a function that makes one, not a Linear"),
        ("mine", dict, "dict is no class of torch.nn.Module"),
        ("mine", module_of(None), "has no forward; write forward"),
        (
            "mine",
            with_argument("layer: nn.Module"),
            "numbers, words, and lists or dataclasses of them; .* layer: Module",
        ),
        ("mine", with_argument("width"), "what type has width of the network 'mine'"),
        ("mine", with_argument("width=None"), "what type has width of the network 'mine'"),
        ("mine", with_argument("width: Nothing = 3"), "cannot be read .*Nothing"),
        ("mine", with_argument("text: str = ''"), "text is the shape of what reads the words"),
        ("mine", with_argument("kind: str = ''"), "no setting of a network can be called 'kind'"),
        ("mine", with_argument("width: int = 3, /"), "by name, and width has none"),
    ],
)
def test_what_cannot_be_plugged_in_is_told_at_once(name: str, network: Any, sentence: str) -> None:
    before = dict(PLUGGED)
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        plug(name, network)
    assert "\n" not in str(caught.value)
    assert before == PLUGGED


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "names .*mine.py, where there is no file"),
        ("1/0", "cannot be run .ZeroDivisionError"),
        ("def f(:", "cannot be run .SyntaxError"),
        ("import unstir\nunstir.plug('dit', 3)", "cannot be run .TypeError"),
        ("x = 3", "plugs nothing in; let it call unstir.plug"),
    ],
)
def test_a_file_that_does_not_plug_in_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    (place / "mine.py").unlink()
    if content is not None:
        (place / "mine.py").write_text(content)
    monkeypatch.setenv("UNSTIR_PLUG", "mine.py")
    assert run(["inspect", "builtin"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(sentence, err)


def test_a_file_is_run_once_and_finds_what_lies_beside_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "beside_the_file.py").write_text("class Counter:\n    runs = 0\n")
    (place / "both.py").write_text(
        "import unstir, torch\nfrom beside_the_file import Counter\nCounter.runs += 1\n"
        "unstir.plug('one', torch.nn.Identity)\nunstir.plug('two', torch.nn.Identity)\n"
    )
    monkeypatch.setenv("UNSTIR_PLUG", "both.py")
    before = list(sys.path)
    plug_from_environment()
    plug_from_environment()
    assert {"one", "two"} <= PLUGGED.keys()
    assert sys.modules["beside_the_file"].Counter.runs == 1
    assert sys.path == before


def test_the_wrapper_is_what_the_library_loads() -> None:
    assert unstir.plug is plug
    plug("mine", Plain)
    assert isinstance(build(config_of("mine"), READER).denoiser.network, Plugged)
