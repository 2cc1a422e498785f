"""Models on disk: the same tensors and configuration come back, or one sentence says why not; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unstir import model as module
from unstir.codec import AutoencoderConfig, BitPlanes, Identity, LearnedCodec, QuantizedConfig
from unstir.conditioning.text import WordReader
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import LearnedRange, PredictBit, PredictNoise, PredictV
from unstir.diffusion.schedule import Cosine, RectifiedFlow
from unstir.diffusion.spacing import LEGACY, SPACINGS, Explicit, Sections
from unstir.model import (
    FORMAT,
    NETWORKS,
    Model,
    ModelConfig,
    SamplingDefaults,
    build,
    checksum_of,
    in_latents,
    is_same_codec,
    load_codec,
    load_model,
    place_codec,
    save_codec,
    save_model,
    spacing_of,
    steps_of,
)
from unstir.nn import DiTConfig, DiTZeroConfig, MMDiTConfig, UNetConfig
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
READER = WordReader.train(["red heart", "blue star", "a cat"], vocabulary=300, max_tokens=8)
NETWORK_SHAPES: dict[str, Any] = {
    "dit": DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
    "unet": UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, text=TEXT),
    "dit_zero": DiTZeroConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
    "mmdit": MMDiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=TEXT),
}
CONFIG = ModelConfig(
    size=16,
    network=NETWORK_SHAPES["dit"],
    schedule=Cosine(offset=0.01),
    parameterization=PredictV(),
    condition_drop=0.2,
    sampling=SamplingDefaults(steps=3, sampler="ddim", eta=0.5, guidance_interval=(-3.0, 4.0)),
)
TRAINING = {"recipe": "tiny", "images_seen": 12, "held_out_error": {"low": 0.1}, "name": "Größe 🎨"}
TAUGHT = ("red heart", "blue star", "Größe 🎨")


def make(config: ModelConfig = CONFIG, seed: int = 0, **more: Any) -> Model:
    """A model none of whose tensors is constant."""
    model = build(config, READER, training=dict(TRAINING))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return replace(model, taught=TAUGHT, **more)


def tensors(model: Model) -> dict[str, Tensor]:
    return dict(model.denoiser.network.state_dict())  # type: ignore[attr-defined]


def assert_same(one: Model, other: Model) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, tensor in tensors(one).items():
        assert tensor.dtype == tensors(other)[name].dtype, name
        assert torch.equal(tensor, tensors(other)[name]), name


def describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite unstir.json."""
    file = folder / "unstir.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


def bless(folder: Path) -> None:
    """Make the checksum of whatever weights lie there right, so that the next line of defence is reached."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    describe(folder, lambda content: content.update(checksum=digest))


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.fixture(scope="module")
def original() -> Model:
    return make()


@pytest.fixture(scope="module")
def saved(original: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(original, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_saved_comes_back(kind: str, tmp_path: Path) -> None:
    """Tensors to the last bit, configuration, words, provenance; ready for inference."""
    model = make(replace(CONFIG, network=NETWORK_SHAPES[kind]))
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert_same(model, again)
    assert again.config == model.config
    assert again.training == TRAINING
    assert again.taught == TAUGHT
    assert again.reader.tokenizer.to_str() == READER.tokenizer.to_str()
    assert again.reader.max_tokens == 8
    assert again.checksum == hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest()
    assert again.process.schedule == Cosine(offset=0.01)
    assert again.denoiser.parameterization == PredictV()
    assert not any(p.requires_grad for p in again.denoiser.parameters())
    assert not any(part.training for part in again.denoiser.modules())


def test_a_folder_is_enough(saved: Path, tmp_path: Path) -> None:
    """Moved elsewhere it is the same model: no path is stored in it that matters."""
    moved = Path(shutil.copytree(saved, tmp_path / "else where"))
    assert_same(load_model(saved), load_model(moved))


def test_bf16_is_rounded_once(original: Model, tmp_path: Path) -> None:
    """Stored as bf16, it is computed with in float32, and each number is the nearest bf16."""
    save_model(original, tmp_path / "m", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, tensor in tensors(load_model(tmp_path / "m")).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors(original)[name].bfloat16().float()), name


def test_other_weights_are_saved_in_their_place(original: Model, tmp_path: Path) -> None:
    """As for the averaged weights: what is given is written, the model itself is not touched."""
    before = {name: tensor.clone() for name, tensor in tensors(original).items()}
    save_model(original, tmp_path / "m", weights={name: tensor + 1 for name, tensor in before.items()})
    for name, tensor in tensors(load_model(tmp_path / "m")).items():
        assert torch.equal(tensor, before[name] + 1), name
        assert torch.equal(tensors(original)[name], before[name]), name


@pytest.mark.parametrize("line", ["a\u2028b", "a\x85b", "a\x0cb", "a\x1eb", "  spaces  ", "a\rb"])
def test_taught_captions_come_back(original: Model, tmp_path: Path, line: str) -> None:
    """A caption may hold any character that is no line feed."""
    save_model(replace(original, taught=("first", line, "last")), tmp_path / "m")
    assert load_model(tmp_path / "m").taught == ("first", line, "last")


def test_files_are_for_everybody(saved: Path) -> None:
    """All files of the folder may be read by the same people: none is more private than the others."""
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()}
    assert {"unstir.json", "model.safetensors", "tokenizer.json", "README.md", "taught.json"} == set(modes)
    assert len(set(modes.values())) == 1, modes


def test_the_card_says_what_it_is(saved: Path) -> None:
    card = (saved / "README.md").read_text("utf-8")
    for words in ("16x16", "tiny", "Größe 🎨", "unstir sample"):
        assert words in card


def test_saving_replaces_a_model(original: Model, tmp_path: Path) -> None:
    """What lay there is gone, files of its own included; nothing is left beside it."""
    save_model(original, tmp_path / "m")
    (tmp_path / "m" / "old.txt").write_text("old")
    other = replace(make(seed=1), taught=())
    save_model(other, tmp_path / "m")
    assert_same(load_model(tmp_path / "m"), other)
    assert load_model(tmp_path / "m").taught == ()
    assert not (tmp_path / "m" / "old.txt").exists()
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("broken", ["save_file", "checksum_of", "card", "replace_directory"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
def test_a_failure_while_saving_leaves_the_old_model(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    """Whatever step fails: the old model is whole, and there are no leftovers."""
    save_model(original, tmp_path / "m")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, broken, fail)
        with pytest.raises(type(error)):
            save_model(make(seed=1), tmp_path / "m")
    assert_same(load_model(tmp_path / "m"), original)
    assert os.listdir(tmp_path) == ["m"]


def test_a_failure_half_through_a_file_leaves_the_old_model(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(original, tmp_path / "m")

    def half(tensors: object, path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", half)
        with pytest.raises(OSError, match="disk full"):
            save_model(make(seed=1), tmp_path / "m")
        with pytest.raises(OSError, match="disk full"):
            save_model(make(seed=1), tmp_path / "fresh")
    assert_same(load_model(tmp_path / "m"), original)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("which", [1, 2])
def test_a_rename_that_fails_leaves_the_old_model(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Renaming the old one away, and then the new one into its place, may both fail."""
    save_model(original, tmp_path / "m")
    rename, count = os.rename, [0]

    def flaky(*args: Any, **keywords: Any) -> None:
        count[0] += 1
        if count[0] == which:
            raise OSError("no rename")
        rename(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", flaky)
        with pytest.raises(OSError, match="no rename"):
            save_model(make(seed=1), tmp_path / "m")
    assert_same(load_model(tmp_path / "m"), original)


def test_saving_never_destroys_what_is_no_model(original: Model, tmp_path: Path) -> None:
    """A folder of pictures, given by mistake, is not "a model folder that is there"."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"irreplaceable")
    with pytest.raises((ValueError, OSError)):
        save_model(original, photos)
    assert (photos / "wedding.jpg").read_bytes() == b"irreplaceable"


def test_loading_moves_no_random_stream(saved: Path) -> None:
    """And the stream does not decide what is loaded."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(first, load_model(saved))


# --- what is no model ---


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    """FileNotFoundError that says what lies there instead."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"w": 1}))
    (tmp_path / "protocol2").write_bytes(pickle.dumps({"w": 1}, protocol=2))
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "dir.json" / "unstir.json").mkdir(parents=True)
    words = {
        "weights.pt": "pickle, which unstir never opens",
        "old.bin": "pickle",
        "protocol2": "pickle",
        "note.txt": "is a file",
        "empty": "is a file",
        "folder": "no unstir.json",
        "pipe": "diffusers",
        "missing": "there is no model",
        "dir.json": "unstir.json",
    }
    for name, expected in words.items():
        with pytest.raises(FileNotFoundError, match=expected) as caught:
            load_model(tmp_path / name)
        assert name in sentence(caught)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def edit(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: describe(folder, lambda content: content.update(changes))


def weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")
        bless(folder)

    return damage


def flip(position: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[position] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(data))

    return damage


def cut(length: int, *, is_blessed: bool) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        if is_blessed:
            bless(folder)

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of a weight": (flip(-5), "damaged"),
    "one bit of the header": (flip(20), "damaged"),
    "truncated": (cut(-100, is_blessed=False), "damaged"),
    "truncated, blessed": (cut(-100, is_blessed=True), "safetensors"),
    "truncated in the header": (cut(30, is_blessed=True), "safetensors"),
    "empty weights": (cut(0, is_blessed=True), "safetensors"),
    "foreign key": (weights(lambda held: held.update(extra=torch.zeros(1))), "1 are unknown.*extra"),
    "missing key": (weights(lambda held: held.pop("modulation.bias")), "1 tensors are missing.*modulation.bias"),
    "prefixed keys": (
        weights(lambda held: [held.update({f"module.{k}": held.pop(k)}) for k in list(held)]),
        "missing and .* unknown",
    ),
    "other shape": (weights(lambda held: held.update({"last.bias": torch.zeros(3)})), r"last.bias is \[3\]"),
    "other shape, same size": (
        weights(lambda held: held.update({"last.weight": held["last.weight"].T.contiguous()})),
        "last.weight is",
    ),
    "newer format": (edit(format=FORMAT + 1), "update unstir"),
    "format 0": (edit(format=0), "format"),
    "format -3": (edit(format=-3), "format"),
    "no format": (lambda folder: describe(folder, lambda content: content.pop("format")), "no format number"),
    "format of another type": (edit(format="one"), "format"),
    "not JSON": (write("unstir.json", b"{ not json"), "no valid JSON"),
    "not an object": (write("unstir.json", b"[1, 2]"), "JSON object"),
    "not UTF-8": (write("unstir.json", b'{"format": 1, "x": "\xff"}'), "unstir.json"),
    "unknown key": (edit(shedule="cosine"), "shedule.*did you mean 'schedule'"),
    "unknown kind": (edit(schedule={"kind": "cosin"}), "schedule: unknown kind 'cosin'"),
    "wrong type": (edit(size="large"), "size.*'large'"),
    "another size": (edit(size=32), "32"),
    "a patch of nothing": (edit(network={"kind": "dit", "patch": 0}), "patch"),
    "another codec": (edit(codec={"kind": "identity", "channels": 4}), "takes 4"),
    "training is no object": (edit(training=3), "training"),
    "no tokenizer": (drop("tokenizer.json"), "tokenizer.json"),
    "broken tokenizer": (write("tokenizer.json", b"{}"), "tokenizer.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused(folder: Path, name: str) -> None:
    """ValueError, one line, that names the file and what is wrong with it."""
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load_model(folder)
    sentence(caught)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_model(folder)


def test_the_words_of_another_model_are_refused(folder: Path) -> None:
    """A tokenizer of the same size that numbers its tokens otherwise would draw something else without a word."""
    other = WordReader.train(["green apple", "yellow moon", "the dog"], vocabulary=300, max_tokens=8)
    assert other.ids("red heart") != READER.ids("red heart")
    (folder / "tokenizer.json").write_text(other.tokenizer.to_str(pretty=False), "utf-8")
    with pytest.raises(ValueError, match="tokenizer"):
        load_model(folder)


def test_a_tokenizer_that_is_too_large_is_refused(folder: Path) -> None:
    other = WordReader.train([f"word{i} wort{i}" for i in range(99)], vocabulary=400, max_tokens=8)
    (folder / "tokenizer.json").write_text(other.tokenizer.to_str(pretty=False), "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer"):
        load_model(folder)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("is_blessed", [False, True])
def test_no_pickle_is_ever_run(folder: Path, tmp_path: Path, is_zip: bool, is_blessed: bool) -> None:
    """Named model.safetensors, with or without a right checksum, a pickle is refused and does nothing."""
    bomb = tmp_path / "exploded"
    if is_zip:
        torch.save(Malicious(bomb), folder / "model.safetensors")
    else:
        (folder / "model.safetensors").write_bytes(pickle.dumps(Malicious(bomb)))
    if is_blessed:
        bless(folder)
    with pytest.raises(ValueError, match="safetensors"):
        load_model(folder)
    assert not bomb.exists()
    pickle.loads(pickle.dumps(Malicious(bomb)))  # the bomb does work
    assert bomb.exists()


# --- building ---


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(CONFIG, size=32), "32"),
        (replace(CONFIG, codec=Identity(channels=4)), "takes 4"),
        (replace(CONFIG, network=replace(NETWORK_SHAPES["dit"], text=replace(TEXT, vocabulary=258))), "tokenizer"),
        (replace(CONFIG, network=NETWORK_SHAPES["unet"], size=15), "multiples of 2"),
        (replace(CONFIG, network=3), "no network"),
        (replace(CONFIG, process="binomial"), "bit or flip"),
        (replace(CONFIG, parameterization=PredictBit()), "bit or flip"),
        (replace(CONFIG, process="binomial", parameterization=PredictBit()), "set codec to bits"),
        (
            replace(CONFIG, process="binomial", parameterization=PredictBit(), codec=BitPlanes()),
            "sampled by ancestral",
        ),
        (replace(CONFIG, schedule=RectifiedFlow(), parameterization=PredictNoise()), "leaves no signal"),
        (replace(CONFIG, schedule=RectifiedFlow(), parameterization=LearnedRange()), "leaves no signal"),
        (replace(CONFIG, parameterization=LearnedRange(mean=PredictV())), "out_channels"),
        (replace(CONFIG, self_conditioned=True), "take 6"),
    ],
)
def test_what_does_not_fit_together_is_not_built(config: ModelConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build(config, READER)
    sentence(caught)


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("condition_drop", -0.1), ("condition_drop", 1.1)])
def test_numbers_out_of_range_are_no_configuration(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(CONFIG, **{field: value})


def test_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert checksum_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- grids as text ---


@pytest.mark.parametrize("name", [*SPACINGS, *LEGACY])
def test_a_grid_by_its_name(name: str) -> None:
    assert spacing_of(name) is {**SPACINGS, **LEGACY}[name]
    assert steps_of(spacing_of(name)) is None


@pytest.mark.parametrize("text", ["sections 10,15,20", " sections  10, 15 ,20 "])
def test_a_grid_of_sections(text: str) -> None:
    assert spacing_of(text) == Sections(counts=(10, 15, 20))
    assert steps_of(spacing_of(text)) == 45


@pytest.mark.parametrize("text", ["1,0.8,0.4", "1, .8, 4e-1, 0"])
def test_a_grid_of_times(text: str) -> None:
    assert spacing_of(text) == Explicit(times=(1.0, 0.8, 0.4))
    assert steps_of(spacing_of(text)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trailling", "unknown grid 'trailling'; did you mean trailing.*leading.*sections 10,15,20"),
        ("", "unknown grid ''"),
        ("sections", "whole numbers of steps, got 'sections'; for instance"),
        ("sections 10,1.5", "whole numbers of steps, got 'sections 10,1.5'"),
        ("sections 10,0", "at least 1 step each, got 10,0"),
        ("section 10,15", "did you mean sections 10,15,20"),
        ("20", "fall strictly.*got 20"),
        ("0.4,0.8", "fall strictly.*got 0.4,0.8"),
        ("1,nan", "fall strictly.*got 1,nan"),
        ("1,0.5,-1", "fall strictly"),
        ("1,,0.5", "unknown grid"),
    ],
)
def test_what_is_no_grid_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        spacing_of(text)
    assert "\n" not in str(caught.value)


def test_defaults_have_the_steps_of_their_grid() -> None:
    assert SamplingDefaults(grid="1,0.8,0.4", steps=3).grid == "1,0.8,0.4"
    with pytest.raises(ValueError, match="has 3 steps, got 20"):
        SamplingDefaults(grid="1,0.8,0.4")


# --- codecs with weights ---

SHAPE = AutoencoderConfig(latent_channels=2, width=4, multipliers=(1, 1), blocks=1, groups=2, scale=1.5)
SHAPES_OF_FOUR = replace(SHAPE, multipliers=(1, 1, 1))
CODEC_SHAPES: dict[str, Any] = {"kl": SHAPE, "vq": QuantizedConfig(autoencoder=SHAPE, codes=9)}


def latent_config(kind: str) -> ModelConfig:
    network = DiTConfig(channels=2, size=8, patch=4, width=32, depth=1, heads=2, text=TEXT)
    return replace(CONFIG, network=network, codec=CODEC_SHAPES[kind])


def codec_of(kind: str) -> LearnedCodec:
    """As if it had been trained."""
    torch.manual_seed(7)
    return CODEC_SHAPES[kind].build()


@pytest.fixture(params=CODEC_SHAPES)
def latent(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Path]:
    """A model in latents, and its folder."""
    model = build(latent_config(request.param), READER, codec=codec_of(request.param))
    save_model(model, tmp_path / "latent", dtype=torch.bfloat16)
    return model, tmp_path / "latent"


def test_a_codec_is_saved_with_its_model(latent: tuple[Model, Path]) -> None:
    """All of its weights to the last bit, whatever the model's are rounded to; frozen, and with its scale."""
    model, folder = latent
    again = load_model(folder)
    assert again.config.codec == model.config.codec
    assert is_same_codec(again.codec, model.codec)
    pictures, noise = torch.rand(2, 3, 16, 16) * 2 - 1, KeyedNoise.from_seeds([1, 2])
    latents = model.codec.encode(pictures, noise)
    assert latents.shape == (2, 2, 8, 8)
    assert torch.equal(again.codec.encode(pictures, noise), latents)
    assert torch.equal(again.codec.decode(latents), model.codec.decode(latents))
    for codec in (model.codec, again.codec):
        assert isinstance(codec, torch.nn.Module)
        assert not codec.training
        assert not any(weight.requires_grad for weight in codec.parameters())
    written = json.loads((folder / "unstir.json").read_text("utf-8"))
    assert written["codec_checksum"] == checksum_of(folder / "codec.safetensors")


def test_a_model_on_pixels_has_no_codec_file(saved: Path) -> None:
    """Its folder is what it was before there were codecs with weights."""
    assert not (saved / "codec.safetensors").exists()
    assert "codec_checksum" not in json.loads((saved / "unstir.json").read_text("utf-8"))
    assert load_model(saved).codec == Identity()


def test_a_missing_codec_is_refused(latent: tuple[Model, Path]) -> None:
    (latent[1] / "codec.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no codec\.safetensors") as caught:
        load_model(latent[1])
    sentence(caught)


def test_another_models_codec_is_refused(latent: tuple[Model, Path]) -> None:
    """One of the same shape decodes to something else, without a word: only its checksum tells."""
    torch.manual_seed(8)
    held = load_file(latent[1] / "codec.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in held.items()}, latent[1] / "codec.safetensors")
    with pytest.raises(ValueError, match=r"codec\.safetensors is damaged, or another model's") as caught:
        load_model(latent[1])
    sentence(caught)


def test_a_codec_of_another_shape_is_refused(latent: tuple[Model, Path]) -> None:
    """Even under a right checksum."""
    file = latent[1] / "codec.safetensors"
    save_file({"x": torch.zeros(2)}, file)
    describe(latent[1], lambda content: content.update(codec_checksum=checksum_of(file)))
    with pytest.raises(ValueError, match=r"codec\.safetensors does not belong to this network"):
        load_model(latent[1])


def test_a_codec_must_be_the_configurations() -> None:
    other = replace(SHAPE, scale=2.0).build()
    with pytest.raises(ValueError, match="made for the codec AutoencoderConfig.*scale=1.5.*got .*scale=2.0"):
        build(latent_config("kl"), READER, codec=other)
    with pytest.raises(ValueError, match=r"got Identity"):
        build(latent_config("kl"), READER, codec=Identity())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec": replace(SHAPE, channels=1)}, "3 channels, the codec takes 1"),
        ({"codec": replace(SHAPE, latent_channels=3)}, "codec gives 3 channels.*network must take 3"),
        ({"codec": replace(SHAPE, multipliers=(1, 1, 1))}, "pictures of size 32, the model says 16"),
        ({"size": 24}, "pictures of size 16, the model says 24"),
        ({"process": "binomial", "parameterization": PredictBit()}, "set codec to bits"),
    ],
)
def test_a_model_must_fit_its_codec(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(replace(latent_config("kl"), **change), READER)


@pytest.mark.parametrize("kind", CODEC_SHAPES)
def test_a_codec_has_a_folder_of_its_own(kind: str, tmp_path: Path) -> None:
    """Weights, shape, scale; it is no model that draws, and a model is no codec."""
    codec = codec_of(kind)
    save_codec(codec, tmp_path / "codec", training={"images_seen": 3})
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    again = load_codec(tmp_path / "codec")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert is_same_codec(codec, again)
    assert again.scale == 1.5
    with pytest.raises(ValueError, match="holds a codec, not a model that draws"):
        load_model(tmp_path / "codec")


def test_a_model_is_no_codec(saved: Path) -> None:
    with pytest.raises(ValueError, match="holds a model that draws, not a codec"):
        load_codec(saved)


def test_codecs_are_the_same_by_shape_and_weights() -> None:
    one, other = codec_of("kl"), codec_of("kl")
    assert is_same_codec(one, other)
    assert not is_same_codec(one, one.scaled(2.0))
    assert not is_same_codec(one, codec_of("vq"))
    assert not is_same_codec(one, Identity())
    assert is_same_codec(BitPlanes(), BitPlanes())
    assert not is_same_codec(BitPlanes(), Identity())
    with torch.no_grad():
        other.last_weight.view(-1)[0] += 1e-3
    assert not is_same_codec(one, other)


def test_a_codec_is_placed_where_it_has_weights(original: Model) -> None:
    place_codec(original, torch.device("cpu"))
    model = build(latent_config("kl"), READER, codec=codec_of("kl"))
    place_codec(model, torch.device("meta"))
    assert isinstance(model.codec, torch.nn.Module)
    assert next(model.codec.parameters()).device.type == "meta"


@pytest.mark.parametrize("kind", CODEC_SHAPES)
@pytest.mark.parametrize("is_self_conditioned", [False, True])
def test_a_model_is_moved_into_latents(kind: str, is_self_conditioned: bool) -> None:
    """Channels, size and patches follow the codec, so that it is built; moving it again changes nothing."""
    base = replace(CONFIG, parameterization=LearnedRange(mean=PredictV()), self_conditioned=is_self_conditioned)
    moved = in_latents(base, CODEC_SHAPES[kind])
    assert (moved.size, moved.network.size, moved.network.patch) == (16, 8, 4)
    assert moved.network.channels == (4 if is_self_conditioned else 2)
    assert moved.network.out_channels == 4
    assert in_latents(moved, CODEC_SHAPES[kind]) == moved
    build(moved, READER, codec=codec_of(kind))
    levels = in_latents(replace(CONFIG, network=NETWORK_SHAPES["unet"]), CODEC_SHAPES[kind])
    assert levels.network == replace(NETWORK_SHAPES["unet"], channels=2)
    build(levels, READER)


def test_patches_are_one_latent_where_nothing_else_divides() -> None:
    small = in_latents(replace(CONFIG, network=replace(NETWORK_SHAPES["dit"], size=16, patch=2)), SHAPES_OF_FOUR)
    assert (small.network.size, small.network.patch) == (4, 1)
