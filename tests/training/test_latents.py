"""Kept latents: the same training as without them, each picture encoded once; what is damaged is made again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unstir.codec import AutoencoderConfig, LearnedCodec, QuantizedConfig
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.model import ModelConfig, in_latents, load_model, save_codec
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.training.latents import Encoded, LatentCache, checksum_of_codec
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig, execute, load_data
from unstir.training.trainer import Report, Trainer, TrainingConfig

SHAPE = AutoencoderConfig(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4, scale=0.7)
SHAPES: dict[str, Any] = {"kl": SHAPE, "vq": QuantizedConfig(autoencoder=SHAPE, codes=12)}
TRAIN, HELD_OUT = 6, 2
CPU = torch.device("cpu")
EVEN = OptimizerConfig(learning_rate=3e-3, warmup_images=0, anneal=0)  # whatever the length of the run
Kept = Literal["float32", "float16", "off"]


def codec_of(kind: str, seed: int = 0) -> LearnedCodec:
    torch.manual_seed(seed)
    codec = cast(LearnedCodec, SHAPES[kind].build())
    cast(nn.Module, codec).eval().requires_grad_(False)
    return codec


def encoded(kind: str = "kl", folder: Path | None = None, **settings: Any) -> Encoded:
    return Encoded(codec_of(kind), CPU, LatentCache(folder), **settings)


def some(count: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return to_unit(torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(TRAIN + HELD_OUT):
        part = folder / ("train" if i < TRAIN else "validation")
        part.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(part / f"{i}.png")
        (part / f"{i}.txt").write_text(f"picture {i}", "utf-8")
    return folder


class Ran:
    """A run of a model in latents, what it told and how many pictures went through the encoder."""

    def __init__(self, out: Path, kind: str, data: Path, *, kept: Kept = "float32", images: int = 24) -> None:
        if not (out / "codec-alone").exists():
            save_codec(codec_of(kind), out / "codec-alone")
        text = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
        shape = DiTConfig(size=16, patch=4, width=16, depth=1, heads=2, text=text)
        config = RunConfig(
            data=str(data),
            codec=str(out / "codec-alone"),
            model=in_latents(ModelConfig(size=16, network=shape), SHAPES[kind]),
            training=TrainingConfig(images=images, batch=4, precision="float32", latents=kept, optimizer=EVEN),
            cadence=Cadence(log=4, checkpoint=12, preview=10**6, validate=12),
            previews=(" ",),
        )
        self.folder, seen = out / "run", list[Trainer]()

        def note(trainer: Trainer, report: Report) -> None:
            seen.append(trainer)

        execute(self.folder, config, load_data(config), device="cpu", say=lambda line: None, hooks=[note])
        assert seen[-1].encoded is not None
        self.made = seen[-1].encoded.made
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text("utf-8").splitlines()]
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.held_out = [line["held_out"] for line in lines if "held_out" in line]
        network = cast(nn.Module, load_model(self.folder / "model").denoiser.network)
        self.weights = torch.cat([weight.flatten() for weight in network.parameters()])

    @property
    def shards(self) -> list[Path]:
        return sorted((self.folder / "latents").iterdir())


@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_with_kept_latents_is_the_run_without(kind: str, pictures: Path, tmp_path: Path) -> None:
    """Bit for bit in float32 and nearly in float16; every picture goes through the encoder once, and not in every step.

    So does a run that stopped half way, whose second half encodes nothing; and one whose files were damaged meanwhile,
    which encodes what was in them again.
    """
    without = Ran(tmp_path / "off", kind, pictures, kept="off")
    assert without.made == 24 + 2 * HELD_OUT
    assert not (without.folder / "latents").exists()
    kept = Ran(tmp_path / "kept", kind, pictures)
    assert kept.made == TRAIN + HELD_OUT
    assert kept.losses == without.losses
    assert kept.held_out == without.held_out
    assert torch.equal(kept.weights, without.weights)
    rounded = Ran(tmp_path / "rounded", kind, pictures, kept="float16")
    assert rounded.made == TRAIN + HELD_OUT
    assert rounded.losses != without.losses
    assert rounded.losses == pytest.approx(without.losses, rel=2e-3)

    for name, is_damaged in (("parts", False), ("damaged", True)):
        first = Ran(tmp_path / name, kind, pictures, images=12)
        assert first.made == TRAIN + HELD_OUT
        for shard in first.shards if is_damaged else []:
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)
        parts = Ran(tmp_path / name, kind, pictures)
        assert parts.made == (TRAIN + HELD_OUT if is_damaged else 0)
        assert torch.equal(parts.weights, without.weights)
        assert len({shard.name for shard in parts.shards} & {shard.name for shard in first.shards}) >= 1


@pytest.mark.parametrize("kind", SHAPES)
def test_moments_and_draws_are_the_encoding(kind: str) -> None:
    """What is found again is what was made; drawing from it is ``encode``, whichever pictures came together."""
    x, codec, noise = some(), codec_of(kind), KeyedNoise.from_seeds([3, 4, 5, 6])
    kept = encoded(kind)
    first = kept.of(x)
    assert kept.made == 4
    assert torch.equal(kept.of(x.flip(0)).flip(0), first)
    assert kept.made == 4
    assert torch.equal(torch.cat([encoded(kind).of(x[i : i + 1]) for i in range(4)]), first)
    assert torch.equal(Encoded(codec, CPU, None).of(x), first)
    torch.testing.assert_close(codec.drawn(first, noise), codec.encode(x, noise), rtol=1e-5, atol=1e-6)


def test_a_picture_that_is_twice_in_a_batch_is_encoded_once() -> None:
    kept, x = encoded(), some(2)
    twice = kept.of(x[[0, 1, 0]])
    assert kept.made == 2
    assert torch.equal(twice[0], twice[2])
    assert not torch.equal(twice[0], twice[1])


def test_the_key_is_of_all_that_decides() -> None:
    """Pixels, mirrored or reshaped ones too, weights, the shape of the codec, the format."""
    x = some(1)[0]
    other = codec_of("kl", seed=1)
    keys = [
        encoded().key(x),
        encoded().key(x.flip(-1)),
        encoded().key(x.reshape(3, 8, 32)),
        encoded(dtype=torch.float16).key(x),
        encoded("vq").key(x),
        Encoded(other, CPU, LatentCache(None)).key(x),
        Encoded(codec_of("kl").scaled(2.0), CPU, LatentCache(None)).key(x),
    ]
    assert len(set(keys)) == len(keys)
    assert encoded().key(x.clone()) == keys[0]
    assert checksum_of_codec(codec_of("kl")) == checksum_of_codec(codec_of("kl"))


def test_mirrored_pictures_have_latents_of_their_own() -> None:
    kept, x = encoded(), some(2)
    one, other = kept.of(x), kept.of(x.flip(-1))
    assert kept.made == 4
    assert not torch.allclose(one.flip(-1), other)
    assert torch.equal(kept.of(torch.cat([x, x.flip(-1)])), torch.cat([one, other]))
    assert kept.made == 4


def test_what_is_written_is_found_by_the_next(tmp_path: Path) -> None:
    """A file by shard, named by its checksum; what was not written when a process was killed is only missing."""
    cache = LatentCache(tmp_path / "latents", shard=64)
    rows = {f"{i:064x}": torch.full((2, 2, 2), float(i)) for i in range(5)}
    for key, row in rows.items():
        cache.put(key, row)
    assert len(cache) == 5
    assert len(list((tmp_path / "latents").iterdir())) == 2
    (tmp_path / "latents" / ".17.new").write_bytes(b"half of a fi")
    killed = LatentCache(tmp_path / "latents")
    assert len(killed) == 4
    cache.flush()
    again = LatentCache(tmp_path / "latents")
    assert len(again) == 5
    assert all(torch.equal(cast(Tensor, again.get(key)), row) for key, row in rows.items())
    assert again.get("nothing") is None
    assert not (tmp_path / "latents" / ".17.new").exists()


@pytest.mark.parametrize("damage", ["last byte", "cut", "empty", "gone", "no safetensors"])
def test_damaged_files_are_left_out(damage: str, tmp_path: Path) -> None:
    """And removed; those beside them are of use still."""
    cache = LatentCache(tmp_path / "latents")
    cache.put("a" * 64, torch.zeros(3))
    cache.flush()
    (bad,) = (tmp_path / "latents").iterdir()
    cache.put("b" * 64, torch.ones(3))
    cache.flush()
    content = bad.read_bytes()
    before = LatentCache(tmp_path / "latents")  # which looked before the damage was done
    if damage == "gone":
        bad.unlink()
    else:
        changed = {"last byte": content[:-1] + b"\x01", "cut": content[:-4], "empty": b"", "no safetensors": b"x" * 99}
        bad.write_bytes(changed[damage])
    for reader in (before, LatentCache(tmp_path / "latents")):
        assert reader.get("a" * 64) is None
        assert torch.equal(cast(Tensor, reader.get("b" * 64)), torch.ones(3))
        assert len(reader) == 1
    assert not bad.exists()


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_no_more_than_so_much_is_kept(place: str, tmp_path: Path) -> None:
    cache = LatentCache(tmp_path / "latents" if place == "folder" else None, most=100, shard=40)
    for i in range(5):
        cache.put(f"{i:064x}", torch.zeros(10))
    assert len(cache) == 2
    assert cache.get(f"{1:064x}") is not None
    assert cache.get(f"{2:064x}") is None
    if place == "folder":  # files are a little larger than what is in them, and a later process sees that
        later = LatentCache(tmp_path / "latents", most=100)
        later.put("f" * 64, torch.zeros(10))
        assert len(later) == 2


def test_what_does_not_fit_is_encoded_each_time() -> None:
    codec, x = codec_of("kl"), some(4)
    one = Encoded(codec, CPU, LatentCache(None)).of(x[:1])
    kept = Encoded(codec, CPU, LatentCache(None, most=2 * one.numel() * 4))
    first = kept.of(x)
    assert torch.equal(kept.of(x), first)
    assert kept.made == 4 + 2


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "latents").write_text("a file is in the way", "utf-8")
    kept, x = encoded(folder=tmp_path / "latents"), some(2)
    first = kept.of(x)
    with pytest.warns(UserWarning, match="cannot be kept in .*latents.*they stay in memory"):
        kept.flush()
    kept.flush()
    assert torch.equal(kept.of(x), first)
    assert kept.made == 2
    assert kept.of(some(2, seed=9)).shape == first.shape


def test_numbers_that_a_format_cannot_hold_are_refused() -> None:
    codec = codec_of("vq")
    cast(Any, codec).to_latents.bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"no number in torch.float16; keep latents with --training.latents float32"):
        Encoded(codec, CPU, LatentCache(None), dtype=torch.float16).of(some(1))


def test_threads_encode_each_picture_once(tmp_path: Path) -> None:
    kept, x = encoded(folder=tmp_path / "latents"), some(6)
    alone = encoded().of(x)
    rows = [[0, 1, 2], [2, 3, 0], [4, 5, 1], [5, 3, 2]] * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: kept.of(x[index]), rows))
    assert kept.made == 6
    assert all(torch.equal(part, alone[index]) for part, index in zip(found, rows, strict=True))


def test_a_codec_without_weights_has_nothing_to_keep(pictures: Path, tmp_path: Path) -> None:
    text = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
    model = ModelConfig(size=16, network=DiTConfig(size=16, patch=4, width=16, depth=1, heads=2, text=text))
    config = RunConfig(data=str(pictures), model=model, training=TrainingConfig(images=4, batch=4))
    config = replace(config, previews=(" ",))
    seen: list[Trainer] = []
    execute(
        tmp_path / "run",
        config,
        load_data(config),
        device="cpu",
        say=lambda line: None,
        hooks=[lambda trainer, report: seen.append(trainer)],
    )
    assert seen[0].encoded is None
    assert not (tmp_path / "run" / "latents").exists()
