"""Latents in training: what a codec makes of each picture, once and not in every step.

Knows: by what the moments of a picture are addressed, in which files they are kept, and how many.
Does not know: which pictures come when, what is drawn from their moments.

    RUN/latents/SHA256.safetensors    the moments of some pictures, each by its key; the name is the file's checksum

The key of a picture is the sha256 of its pixels, as they are after all that is done to pictures, of the codec and of
the format that moments are kept in. So a mirrored picture has another key, and what other weights made is never found.
Whatever is missing is made again: a folder that is deleted, or a file that is damaged, costs time and changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unstir.codec import LearnedCodec
from unstir.model import checksum_of, write_tensors
from unstir.typing import Picture

MOST_ON_DISK = 8 * 2**30
"""Bytes of latents that a run keeps in its folder: a million pictures of 256 x 256 at factor 8, in float32."""

MOST_IN_MEMORY = 2**30
"""Bytes of latents that are kept where there is no folder for them."""

SHARD = 64 * 2**20
"""Bytes of a file; so many are in memory before they are written."""


class LatentCache:
    """Tensors by their keys, in a folder or in memory, up to a number of bytes; what comes later is not kept.

    Nothing is ever thrown out: where a set does not fit, pictures come round in another order each time, and the part
    that is there saves as much as any other part would.

    Args:
        folder: where; it is made when something is written. None keeps them in memory.
        most: bytes that are kept.
        shard: bytes of a file.
    """

    def __init__(self, folder: Path | None, *, most: int | None = None, shard: int = SHARD) -> None:
        self.folder, self.shard = folder, shard
        self.most = most if most is not None else MOST_IN_MEMORY if folder is None else MOST_ON_DISK
        self.kept = 0
        self._fresh: dict[str, Tensor] = {}
        self._fresh_bytes = 0
        self._places: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}
        if folder is not None:
            for path in folder.glob(".*.new"):  # of a process that was killed while it wrote
                _remove(path)
            for path in sorted(folder.glob("*.safetensors")):
                self._look_at(path)

    def __len__(self) -> int:
        """How many tensors are kept."""
        return len(self._places) + len(self._fresh)

    def get(self, key: str) -> Tensor | None:
        """The tensor of a key; None where it is not kept, or its file is damaged, which is removed then."""
        if key in self._fresh:
            return self._fresh[key]
        path = self._places.get(key)
        if path is None:
            return None
        file = self._files.get(path)
        if file is None:
            file = self._opened(path)
        return None if file is None else cast(Tensor, file.get_tensor(key))

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor, if there is room."""
        size = tensor.numel() * tensor.element_size()
        if key in self._fresh or self.kept + size > self.most:
            return
        self._fresh[key] = tensor
        self._fresh_bytes += size
        self.kept += size
        if self._fresh_bytes >= self.shard:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory alone: a whole file or none. Where the disk does not take it, it stays in memory."""
        if self.folder is None or not self._fresh:
            return
        try:
            path = _write(self.folder, self._fresh)
        except OSError as error:
            warnings.warn(f"latents cannot be kept in {self.folder} ({error}); they stay in memory", stacklevel=2)
            self.folder, self.most = None, min(self.most, self.kept + MOST_IN_MEMORY)
            return
        self._places.update(dict.fromkeys(self._fresh, path))
        self._fresh, self._fresh_bytes = {}, 0

    def _look_at(self, path: Path) -> None:
        """Note what a file says that it holds; whether that is so is seen when something of it is asked for."""
        try:
            with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                keys = cast("list[str]", file.keys())
        except (SafetensorError, OSError):
            _remove(path)
            return
        self._places.update(dict.fromkeys(keys, path))
        self.kept += path.stat().st_size

    def _opened(self, path: Path) -> Any:
        """A file that is as it was written, open; None, and none of its keys from here on, where it is not."""
        try:
            if checksum_of(path) == path.stem:
                self._files[path] = file = cast(Any, safe_open)(path, framework="pt")
                return file
            self.kept -= path.stat().st_size
        except (SafetensorError, OSError):
            pass  # it is gone
        _remove(path)
        self._places = {key: place for key, place in self._places.items() if place != path}
        return None


class Encoded:
    """What training sees of pictures through a codec with weights: their moments, made once each.

    On a CPU pictures go through the encoder one by one, so that what it says of one does not depend, not in the last
    bit either, on which others are in the batch: a run with a cache is the run without one. Elsewhere those of a batch
    that are not there yet go together. May be called by several threads.

    Args:
        codec: on the device; its weights do not change from here on.
        device: where pictures go through it.
        cache: None makes moments anew each time.
        dtype: that they are kept in.
    """

    def __init__(
        self,
        codec: LearnedCodec,
        device: torch.device,
        cache: LatentCache | None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.codec, self.device, self.cache, self.dtype = codec, device, cache, dtype
        self.made = 0  # pictures that went through the encoder
        self._codec_checksum = "" if cache is None else checksum_of_codec(codec)
        self._lock = threading.Lock()

    @torch.no_grad()
    def of(self, pictures: Picture) -> Float[Tensor, "b m u v"]:
        """The moments of pictures, in float32; on the CPU where they are kept, else on the device.

        Raises:
            ValueError: if the codec cannot read such pictures, or a number does not fit into the format.
        """
        with self._lock:
            return self._made(pictures) if self.cache is None else self._found(pictures, self.cache)

    def flush(self) -> None:
        """Write what is in memory alone."""
        if self.cache is not None:
            with self._lock:
                self.cache.flush()

    def key(self, picture: Float[Tensor, "c h w"]) -> str:
        """By which the moments of a picture are found: of its pixels, the codec and the format."""
        head = (tuple(picture.shape), str(picture.dtype), str(self.dtype), self._codec_checksum)
        digest = hashlib.sha256(repr(head).encode())
        digest.update(cast(Any, picture.detach().cpu().contiguous().numpy()))
        return digest.hexdigest()

    def _found(self, pictures: Picture, cache: LatentCache) -> Float[Tensor, "b m u v"]:
        keys = [self.key(picture) for picture in pictures]
        found = {key: tensor for key in keys if (tensor := cache.get(key)) is not None}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        if missing:
            made = self._made(pictures[list(missing.values())]).cpu().to(self.dtype)
            if not bool(torch.isfinite(made).all()):
                raise ValueError(
                    f"the codec says something of a picture that is no number in {self.dtype}; keep latents with "
                    "--training.latents float32, or train the codec anew"
                )
            for key, tensor in zip(missing, made, strict=True):
                found[key] = tensor.clone()  # a row of its own: the batch that it came from need not stay
                cache.put(key, found[key])
        return torch.stack([found[key] for key in keys]).float()

    def _made(self, pictures: Picture) -> Float[Tensor, "b m u v"]:
        self.made += len(pictures)
        rows = 1 if self.device.type == "cpu" else max(1, len(pictures))
        parts = [pictures[start : start + rows] for start in range(0, len(pictures), rows)]
        return torch.cat([self.codec.moments(part.to(self.device)) for part in parts])


def checksum_of_codec(codec: LearnedCodec) -> str:
    """The sha256 of what a codec is made of and of its weights, in hexadecimal; wherever they lie."""
    digest = hashlib.sha256(repr(codec.config).encode())
    for name, weight in sorted(cast(nn.Module, codec).state_dict().items()):
        digest.update(repr((name, tuple(weight.shape), str(weight.dtype))).encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A file of these tensors, named by its checksum, which appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.new"
    try:
        write_tensors(temporary, tensors)
        path = folder / f"{checksum_of(temporary)}.safetensors"
        os.replace(temporary, path)
    finally:
        _remove(temporary)
    return path


def _remove(path: Path) -> None:
    """Remove a file; where that cannot be done it stays, which does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
