"""The benchmark of training: both sides train the same, and what is told is what was counted; no time is asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from unstir import device
from unstir.bench import machine, theirs
from unstir.bench import training as module
from unstir.bench.exact import linear
from unstir.bench.plain_dit import PlainDiT, PlainDiTConfig
from unstir.bench.training import (
    BATCH,
    GPU_BATCH,
    SUBJECTS,
    Conditions,
    Entry,
    Subject,
    Timed,
    bench_training,
    gflop_of,
    our_entries,
    our_step,
    rows_of,
    take_turns,
    their_entries,
    their_step,
    usual_batch,
    usual_models,
)
from unstir.bench.training_table import COLUMNS, figures, notes, tables
from unstir.condition import Condition
from unstir.nn.dit import DiT, DiTConfig
from unstir.nn.dropout import Dropout
from unstir.nn.unet import UNet
from unstir.speedups import SPEEDUPS, is_on

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CPU = torch.device("cpu")
OF_OTHERS = {"pinned_prefetch", "resident_pictures", "replayed_graphs"}
OF_GPUS = {"compiled_networks", "channels_last"}
TINY = module.ddpm(64, (1, 1))
DIT = DiTConfig(size=8, patch=2, width=16, depth=1, heads=2, text=None)
ONE = Conditions(batch=2, repeats=2, device=CPU, precision="float32")


def silent(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a moment, on pictures of 8x8."""
    monkeypatch.setattr(module, "SIZE", 8)
    monkeypatch.setattr(machine, "peaks", lambda place: {"float32": 100.0, "bf16": 400.0})
    subjects = {
        "small": Subject(
            title="tiny U-Net", peer="diffusers", ours=lambda: UNet(TINY), theirs=lambda: theirs.their_unet(TINY)
        ),
        "dit": Subject(
            title="tiny DiT",
            peer="plain DiT",
            ours=lambda: DiT(DIT),
            theirs=lambda: PlainDiT(PlainDiTConfig(size=8, width=16, depth=1, heads=2)),
            idle=("dropout_masks",),
        ),
    }
    monkeypatch.setattr(module, "SUBJECTS", subjects)


def test_the_models_are_those_of_the_papers_on_both_sides() -> None:
    pytest.importorskip("diffusers")

    def weights(make: Callable[[], nn.Module]) -> int:
        with torch.device("meta"):
            return sum(weight.numel() for weight in make().parameters())

    assert [weights(side) for side in (SUBJECTS["ddpm"].ours, SUBJECTS["ddpm"].theirs)] == [35_746_307] * 2
    assert [weights(side) for side in (SUBJECTS["small"].ours, SUBJECTS["small"].theirs)] == [6_472_195] * 2
    dit, larger = SUBJECTS["dit"], SUBJECTS["dit-b"]
    assert 20e6 < weights(dit.ours) < weights(dit.theirs) < 33e6  # one modulation is shared by all layers of ours
    assert 85e6 < weights(larger.ours) < weights(larger.theirs) < 131e6  # the paper's DiT-B/2, with labels, has 130e6


def test_both_sides_compute_as_much_a_picture() -> None:
    """Fang et al. 2023, arXiv:2305.10924, Table 1, count 6.1 billion multiplications a picture, but not attention's own."""
    pytest.importorskip("diffusers")
    subject = SUBJECTS["ddpm"]
    own = gflop_of(subject.ours, lambda network, x: network(x, torch.zeros(1), Condition(seeds=torch.zeros(1).long())))
    their = gflop_of(subject.theirs, lambda network, x: network(x, torch.zeros(1).long()))
    assert own == pytest.approx(their, rel=1e-6)
    attention = 5 * 2 * 256**3 / 1e9  # of the 16x16 level; the middle's is a thousandth of it
    assert own / 6 - attention == pytest.approx(6.1, abs=0.06)


def test_every_side_is_told_beside_the_others(small: None) -> None:
    pytest.importorskip("diffusers")
    stages: list[tuple[str, int, int]] = []
    result = bench_training(
        models=("small", "dit"), batch=2, repeats=2, device="cpu", advance=lambda *told: stages.append(told)
    )
    assert [(row["model"], row["side"], row["role"]) for row in result.rows] == [
        ("small", "diffusers", "default"),
        ("small", "diffusers", "best"),
        ("small", "unstir", "ours"),
        ("dit", "plain DiT", "default"),
        ("dit", "plain DiT", "best"),
        ("dit", "unstir", "ours"),
    ]
    assert result.has_peers
    for row in result.rows:
        seconds = row["ms_per_step"] / 1000
        assert row["images_per_second"] == pytest.approx(2 / seconds)
        assert row["gflop_per_second"] == pytest.approx(2 * row["gflop_per_image"] / seconds)
        assert row["share_of_peak"] == pytest.approx(row["gflop_per_second"] / 400)
        assert row[f"times_{row['role']}"] == 1
        assert row["compile_seconds"] is None
    unet = result.rows[:3]
    assert len({row["weights"] for row in unet}) == 1
    assert stages[0] == ("tiny U-Net", 0, 9)
    assert stages[-1] == ("tiny DiT", 9, 9)
    json.dumps(figures(result), allow_nan=False)
    assert list(tables(result)) == ["tiny U-Net", "tiny DiT"]
    assert all(len(line) == len(COLUMNS) for lines in tables(result).values() for line in lines)


def test_without_diffusers_ours_is_timed_alone(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = bench_training(models=("small", "dit"), batch=1, repeats=1, device="cpu", advance=silent)
    assert [row["side"] for row in result.rows] == ["unstir", "plain DiT", "plain DiT", "unstir"]
    assert not result.has_peers
    assert result.rows[0]["times_default"] is result.rows[0]["times_best"] is None
    assert tables(result)["tiny U-Net"][0][-3:] == ["-", "-", "1.00"]
    assert bench_training(models=("dit",), batch=1, repeats=1, device="cpu", advance=silent).has_peers


def entry(role: module.Role = "ours", step: module.Step = lambda: None) -> Entry:
    is_compiled = role == "compiled"
    return Entry(side="unstir", how="bf16", role=role, step=step, weights=7, gflop=3.0, is_compiled=is_compiled)


def test_ratios_are_those_within_a_round() -> None:
    """The machine slows down tenfold in the second round, for all alike; medians of a side would not show it."""
    roles: tuple[module.Role, ...] = ("default", "best", "ours", "lever")
    rounds = ((4.0, 40.0, 4.4), (2.0, 20.0, 2.2), (1.0, 10.0, 1.0), (2.0, 15.0, 1.0))
    rows = rows_of([entry(role) for role in roles], [Timed(rounds=each) for each in rounds], batch=2)
    assert [row["times_default"] for row in rows] == pytest.approx([1, 2, 4, 40 / 15])
    assert [row["times_best"] for row in rows] == pytest.approx([0.5, 1, 2, 20 / 15])
    assert [row["times_ours"] for row in rows] == pytest.approx([0.25, 0.5, 1, 10 / 15])
    assert rows[0]["ms_per_step"] == 4400
    assert rows[0]["gflop_per_second"] == pytest.approx(2 * 3 / 4.4)


def test_all_take_turns_after_two_steps_to_warm_up() -> None:
    order: list[str] = []
    entries = [entry(step=partial(order.append, name)) for name in "ab"]
    told: list[tuple[int, int]] = []
    timed = take_turns(entries, ONE, lambda done, total: told.append((done, total)))
    assert "".join(order) == "aabb" + "ab" * 2
    assert [len(each.rounds) for each in timed] == [2, 2]
    assert told == [(done, 6) for done in range(7)]


def test_speed_ups_are_off_where_a_row_says_so(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """While the network and the optimizer are made, while a step is taken, and for nobody else."""
    made: list[tuple[str, ...]] = []
    stepped: list[tuple[str, ...]] = []

    def off() -> tuple[str, ...]:
        return tuple(name for name in SPEEDUPS if not is_on(name))

    def step(network: object, x0: object, *, precision: str, is_compiled: bool) -> module.Step:
        made.append((precision, *off()))
        return lambda: stepped.append(off())

    monkeypatch.setattr(module, "our_step", step)
    monkeypatch.setattr(module, "keep_memory", lambda: False)  # after a change one step more is taken
    monkeypatch.setattr(device, "has_native_bf16", lambda place: True)
    shared = Conditions(batch=1, repeats=1, device=CPU, precision="bf16")
    aside = {"routed_products", *OF_OTHERS, *OF_GPUS}  # float32 only; of other work; of other devices
    for subject, idle in (("small", aside), ("dit", {*aside, "dropout_masks"})):
        made.clear()
        stepped.clear()
        entries = our_entries(module.SUBJECTS[subject], shared.pictures(), shared, is_compiled=False, has_levers=True)
        names = [name for name in SPEEDUPS if name not in idle]
        rows = [("float32" if name == "bf16" else "bf16", name) for name in names]
        assert [each.how for each in entries] == ["bf16", *(f"{number}, without {name}" for number, name in rows)]
        assert made == [("bf16",), *rows]
        take_turns(entries, shared, lambda done, total: None)
        assert stepped[-len(entries) :] == [(), *((name,) for name in names)]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_speed_ups_that_do_nothing_have_no_row(monkeypatch: pytest.MonkeyPatch, small: None, kind: str) -> None:
    monkeypatch.setattr(module, "our_step", lambda network, x0, *, precision, is_compiled: lambda: None)
    monkeypatch.setattr(module, "resolve_precision", lambda name, place: "float32")
    shared = Conditions(batch=1, repeats=1, device=torch.device(kind), precision="float32")
    entries = our_entries(module.SUBJECTS["dit"], torch.zeros(1, 3, 8, 8), shared, is_compiled=False, has_levers=True)
    found = {each.off[0] for each in entries[1:]}
    assert {"fused_optimizer", "joined_average"} <= found
    assert not {"plain_attention", "dropout_masks", *OF_OTHERS} & found
    assert ("routed_products" in found) == (kind == "cpu")
    assert OF_GPUS & found == (OF_GPUS if kind == "cuda" else set())


def test_compiling_is_told_apart(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))
    result = bench_training(models=("dit",), batch=1, repeats=1, device="cpu", is_compiled=True, advance=silent)
    row = result.rows[-1]
    assert row["how"].endswith(", compiled")
    assert [type(network) for network in compiled] == [DiT]
    assert isinstance(row["compile_seconds"], float)
    assert any(line.startswith(f"tiny DiT, unstir: {row['how']}: compiled in ") for line in notes(result))


def test_on_cuda_ours_is_compiled_as_it_comes_and_the_peer_at_its_best(
    monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    """Whose default is as it comes; and no row says the same twice."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda network, *, dynamic: compiled.append(network))
    monkeypatch.setattr(nn.Module, "to", lambda network, device: network)  # where there is no such device
    monkeypatch.setattr(module, "our_step", lambda network, x0, *, precision, is_compiled: lambda: None)
    monkeypatch.setattr(module, "resolve_precision", lambda name, place: "bf16")
    shared = Conditions(batch=1, repeats=1, device=torch.device("cuda"), precision="bf16")
    subject, x0 = module.SUBJECTS["dit"], torch.zeros(1, 3, 8, 8)
    entries = their_entries(subject, x0, shared)
    assert [each.how for each in entries] == ["float32, Adam", "bf16 autocast, fused Adam, compiled"]
    entries += our_entries(subject, x0, shared, is_compiled=True, has_levers=True)
    told = [each.how for each in entries if each.is_compiled]
    assert told[:2] == ["bf16 autocast, fused Adam, compiled", "bf16"]
    assert "bf16, without compiled_networks" not in told
    assert "bf16, without compiled_networks" in [each.how for each in entries]
    assert [type(network) for network in compiled] == [PlainDiT]


def test_a_gpu_is_given_more_and_a_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_models("cpu") == ("ddpm", "small", "dit")
    assert usual_batch("cpu") == BATCH
    monkeypatch.setattr(module, "resolve_device", torch.device)
    assert usual_models("cuda") == ("ddpm", "small", "dit", "dit-b")
    assert usual_batch("cuda") == GPU_BATCH


def test_a_compiler_that_fails_costs_its_own_row_only() -> None:
    def fail() -> None:
        raise RuntimeError("no compiler\nhere")

    timed = take_turns([entry(), entry("compiled", fail)], ONE, lambda done, total: None)
    rows = rows_of([entry(), entry("compiled")], timed, batch=2)
    assert rows[1]["failure"] == "RuntimeError: no compiler here"
    assert rows[1]["ms_per_step"] is rows[1]["times_ours"] is rows[1]["compile_seconds"] is None
    assert rows[0]["failure"] == ""
    with pytest.raises(RuntimeError, match="no compiler"):
        take_turns([entry("ours", fail)], ONE, lambda done, total: None)


def test_products_and_convolutions_are_counted_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE", 4)

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.SiLU(), nn.Flatten(2), nn.Linear(16, 7))

    assert gflop_of(make, lambda network, x: network(x)) == pytest.approx(3 * 2 * (16 * 27 * 5 + 5 * 16 * 7) / 1e9)

    def attend(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        query = torch.zeros(1, 2, 10, 8)
        return nn.functional.scaled_dot_product_attention(query, query, query)

    assert gflop_of(nn.Identity, attend) == pytest.approx(3 * 2 * 2 * (2 * 10 * 10 * 8) / 1e9)


class Watched(nn.Module):
    """A network of one weight that remembers what it was asked."""

    in_channels = out_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        self.asked.append((x.detach(), t))
        return self.weight * x


def test_both_sides_spoil_pictures_alike() -> None:
    """At whole timesteps of DDPM's chain, which ours are told as 1 to 1000 and theirs as 0 to 999."""
    x0 = torch.full((512, 3, 4, 4), 0.5)
    own, their = Watched(), Watched()
    steps = {
        own: our_step(own, x0, precision="float32", is_compiled=False),
        their: their_step(their, x0, precision="float32", is_fused=False),
    }
    for network, step in steps.items():
        before = network.weight.item()
        step()
        step()
        assert network.weight.item() != before
        assert network.training
        (x, t), (other, _) = network.asked
        assert not torch.allclose(x, other)
        time = (t if network is own else t + 1).double()
        assert torch.equal(time, time.round())
        assert 1 <= time.min() < 20
        assert 980 < time.max() <= 1000
        level = linear().at(time / 1000)
        noise = (x - level.alpha[:, None, None, None] * x0) / level.sigma[:, None, None, None]
        assert noise.mean().item() == pytest.approx(0, abs=0.03)
        assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_the_peer_has_none_of_our_speed_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own autocast routes products through oneDNN; the peer is what torch makes of it by itself."""
    monkeypatch.setattr(device, "routing_pays", lambda: True)
    routes: list[str] = []

    class Routed(Watched):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
            routes.append(torch.backends.mkldnn.matmul.fp32_precision)
            return super().forward(x, t)

    x0 = torch.zeros(2, 3, 4, 4)
    their_step(Routed(), x0, precision="float32", is_fused=False)()
    our_step(Routed(), x0, precision="float32", is_compiled=False)()
    assert routes == ["none", "bf16"]


def test_both_sides_drop_out_alike(small: None) -> None:
    pytest.importorskip("diffusers")
    own, their = UNet(TINY), theirs.their_unet(TINY)
    ours = [part.share for part in own.modules() if isinstance(part, Dropout)]
    other = [part.p for part in their.modules() if isinstance(part, nn.Dropout) and part.p]
    assert ours == other == [0.1] * len(ours)
    assert len(ours) == 12  # a block of ours


def test_the_peer_at_its_best_has_autocast_where_that_helps(small: None) -> None:
    for precision, how in (("bf16", "bf16 autocast, fused Adam"), ("float32", "float32, fused Adam")):
        shared = Conditions(batch=1, repeats=1, device=CPU, precision=precision)
        entries = their_entries(module.SUBJECTS["dit"], shared.pictures(), shared)
        assert [each.how for each in entries] == ["float32, Adam", how]


def test_without_native_bf16_it_is_said(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    monkeypatch.setattr(module, "has_native_bf16", lambda place: False)
    monkeypatch.setattr(device, "has_native_bf16", lambda place: False)
    monkeypatch.setattr(machine, "peaks", lambda place: {"float32": 100.0})
    result = bench_training(models=("dit",), batch=1, repeats=1, device="cpu", advance=silent)
    assert [row["how"] for row in result.rows] == ["float32, Adam", "float32, fused Adam", "float32"]
    assert result.rows[0]["share_of_peak"] == pytest.approx(result.rows[0]["gflop_per_second"] / 100)
    assert any("no native bf16" in line for line in notes(result))


def test_the_best_peak_of_the_run_counts(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    found = iter([{"float32": 10.0, "bf16": 50.0}, {"float32": 20.0, "bf16": 40.0}])
    monkeypatch.setattr(machine, "peaks", lambda place: next(found))
    result = bench_training(models=("dit",), batch=1, repeats=1, device="cpu", advance=silent)
    assert result.peaks == {"float32": 20.0, "bf16": 50.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "batch must be whole numbers of at least 1, got 0"),
        ({"repeats": 0}, "repeats must be whole numbers of at least 1, got 0"),
        ({"models": ("smal",)}, "unknown model 'smal'; did you mean small"),
        ({"models": ()}, "give a model to train; there are ddpm, small, dit"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_work(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bench_training(**given, advance=silent)
