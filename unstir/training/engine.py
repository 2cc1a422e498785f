"""Several processes that train as one.

Knows: ranks, which samples of a batch are whose, how gradients and weights are shared, how shards reach the disk.
Does not know: what is trained, run folders, which samples there are.

torchrun starts the processes and says in the environment who is who. Between the steps of a run they speak over a group
of their own on the CPU, so that nobody waits for a GPU to be heard.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unstir.model import disk_error

Way = Literal["ddp", "fsdp"]
"""How processes share weights: each holds all (ddp), or each its shard (fsdp)."""

_PATIENCE = timedelta(minutes=30)  # for a process that is busy; one that has ended is noticed at once
_LOST = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "timed out")


class PeerLostError(OSError):
    """Another process of the run has ended."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes that train as one, seen from one of them; by default there is no other.

    Args:
        rank: which of them this is.
        size: how many there are.
        local: which of those on this machine it is.

    Raises:
        ValueError: if there is no such rank.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        """Refuse ranks that are none."""
        if not 0 <= self.rank < self.size or self.local < 0:
            raise ValueError(f"rank must be from 0 to {self.size - 1}, got {self.rank} (on this machine {self.local})")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def rows(self, count: int, rank: int | None = None) -> slice:
        """Which of ``count`` samples are this process's, or another's: consecutive ones, nearly as many for all."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def any(self, told: bool) -> bool:
        """Whether one of the processes at least says so; all must ask."""
        return self.largest(int(told)) == 1

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes give; all must ask."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=_spoken())
        return int(value.item())

    def told(self, text: str) -> str:
        """What the first process says; all must ask."""
        return self.everybodys(text if self.is_first else "")[0]

    def everybodys(self, text: str) -> list[str]:
        """What every process says, in their order; all must ask."""
        if self.size == 1:
            return [text]
        said = text.encode()
        length = self.largest(len(said))
        own = torch.tensor(list(said.ljust(length)), dtype=torch.uint8)
        heard = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(heard, own, group=_spoken())
        return [content.numpy().tobytes().decode().rstrip(" ") for content in heard]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier(group=_spoken())

    def gathered(self, values: Shaped[Tensor, "k n"], count: int) -> Shaped[Tensor, "k m"]:
        """What the processes have for each of their ``rows(count)``, in the order of all ``count`` of them."""
        if self.size == 1:
            return values
        most = -(-count // self.size)
        padded = values.new_zeros(len(values), most)
        padded[:, : values.shape[1]] = values
        everybodys = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(everybodys, padded, group=_spoken() if values.device.type == "cpu" else None)
        lengths = [rows.stop - rows.start for rows in (self.rows(count, rank) for rank in range(self.size))]
        return torch.cat([part[:, :length] for part, length in zip(everybodys, lengths, strict=True)], 1)


def team_of(environment: Mapping[str, str]) -> Team:
    """The team that torchrun describes in the environment.

    Raises:
        ValueError: if the variables contradict each other.
    """
    try:
        rank, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
        return Team(rank=rank, size=size, local=int(environment.get("LOCAL_RANK", "0")))
    except ValueError as error:
        raise ValueError(f"RANK, WORLD_SIZE and LOCAL_RANK are set, but not as torchrun sets them: {error}") from None


@contextmanager
def joined(device: torch.device) -> Generator[Team]:
    """The team of this process, which speaks with each other while this lasts.

    Args:
        device: where this process computes.

    Raises:
        PeerLostError: if another process ended in the middle.
    """
    team = team_of(os.environ)
    if team.size == 1:
        yield team
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    _groups["spoken"] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield team
        team.wait()
    except RuntimeError as error:  # what gloo and NCCL raise has no class of its own
        if any(word in str(error).lower() for word in _LOST):
            raise PeerLostError("another process of this run has ended; what it said tells why") from None
        raise
    finally:
        _groups.clear()
        dist.destroy_process_group()


_groups: dict[str, Any] = {}


def _spoken() -> Any:
    return _groups["spoken"]


def local_device(device: torch.device, environment: Mapping[str, str]) -> torch.device:
    """The device of this process: on a machine with several GPUs each process takes its own.

    Raises:
        ValueError: if there are more processes on this machine than GPUs.
    """
    team = team_of(environment)
    if device.type != "cuda" or team.size == 1:
        return device
    if team.local >= torch.cuda.device_count():
        raise ValueError(
            f"this machine has {torch.cuda.device_count()} GPUs, too few for process {team.local + 1} on it; start "
            "fewer with --nproc-per-node"
        )
    return torch.device("cuda", team.local)


def share(network: nn.Module, team: Team, way: Way, device: torch.device) -> nn.Module:
    """What to call in place of a network so that all processes learn the same.

    With ``fsdp`` that is the network itself, whose weights are shards from here on: those of every layer of a stack are
    gathered when it is called, and scattered again.

    Source: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
    """
    if team.size == 1:
        return network
    if way == "ddp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    shard(network, device)
    return network


def shard(network: nn.Module, device: torch.device) -> None:
    """Leave this process with its shard of the weights, on its device."""
    fsdp = _torch("fsdp")
    mesh = _torch("device_mesh").init_device_mesh(device.type, (dist.get_world_size(),))
    for stack in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for layer in stack:
            fsdp.fully_shard(layer, mesh=mesh)
    fsdp.fully_shard(network, mesh=mesh)
    if hasattr(network, "read"):
        fsdp.register_fsdp_forward_method(network, "read")


def quiet(called: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
    """The context of one part of a batch: gradients are exchanged with the last one only."""
    if isinstance(called, DistributedDataParallel):
        return nullcontext() if is_last else called.no_sync()
    if dist.is_initialized() and isinstance(called, _torch("fsdp").FSDPModule):
        cast(Any, called).set_requires_gradient_sync(is_last)
    return nullcontext()


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with all their shards; every process must ask, in one order."""
    return {name: whole_of(tensor) for name, tensor in tensors.items()}


def whole_of(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; every process must ask."""
    return cast(Any, tensor).full_tensor() if is_shard(tensor) else tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds a part of it only."""
    return dist.is_initialized() and isinstance(tensor, _torch("tensor").DTensor)


def fill(target: Tensor, value: Tensor) -> None:
    """Put a whole value into a tensor, or this process's shard of it into its shard."""
    with torch.no_grad():
        if is_shard(target):
            mesh, placements = cast(Any, target).device_mesh, cast(Any, target).placements
            value = _torch("tensor").distribute_tensor(value.to(target.device), mesh, placements)
        target.copy_(value)


def write_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors files, every process its shards; all must ask.

    Raises:
        OSError: if they cannot be written.
    """
    checkpoint = _torch("checkpoint")
    writer = checkpoint.HuggingFaceStorageWriter(path=str(directory), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            checkpoint.save(dict(tensors), storage_writer=writer)
        except checkpoint.CheckpointException as error:
            raise disk_error(next(iter(error.failures.values()))[0], directory) from None


def read_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or shards, from what any number of processes wrote; all processes must ask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = _torch("checkpoint").HuggingFaceStorageReader(path=str(directory))
        _torch("checkpoint").load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())


def shapes_in(directory: Path) -> dict[str, torch.Size]:
    """The names and whole shapes of what ``write_shards`` wrote."""
    metadata = _torch("checkpoint").HuggingFaceStorageReader(path=str(directory)).read_metadata()
    return {name: entry.size for name, entry in metadata.state_dict_metadata.items()}


def _torch(name: str) -> Any:
    """A part of torch.distributed that takes a second to import: only those who are several need it."""
    return importlib.import_module(f"torch.distributed.{name}")
