"""The adapter: it drives schedulers as the pipelines do, and what it reports is what raw diffusers does."""

from __future__ import annotations

import inspect
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from unstir.diffusion.noise import KeyedNoise
from unstir.verify import diffusers_adapter
from unstir.verify.diffusers_adapter import SCHEDULERS, SchedulerTarget, every
from unstir.verify.observe import Pattern, certain, observe
from unstir.verify.oracles import GaussianOracle
from unstir.verify.statements import STATEMENTS
from unstir.verify.suite import plan, verify
from unstir.verify.target import Case, load_cases

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ORACLE = GaussianOracle(mean=torch.tensor(0.3, dtype=torch.float64), variance=torch.tensor(0.4, dtype=torch.float64))
NOISE = KeyedNoise.from_seeds([0, 1])
START = torch.randn(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def failures(target: SchedulerTarget, *ids: str) -> dict[str, str]:
    report = verify(plan([Case(target=target)], ids))
    return {row.id: row.measured for row in report.rows if row.status == "failed"}


def test_every_factory_is_there_under_its_own_name() -> None:
    targets = every()
    assert list(targets) == list(SCHEDULERS)
    assert len({target.name for target in targets.values()}) == len(targets)
    for name, factory in SCHEDULERS.items():
        assert getattr(diffusers_adapter, name) is factory
        assert not inspect.signature(factory).parameters
    (case,) = load_cases("unstir.verify.diffusers_adapter:ddim")
    assert case.target.name == "diffusers DDIM"
    specs = [case.spec for case in load_cases("unstir.verify.diffusers_adapter:every")]
    assert specs[0] == "unstir.verify.diffusers_adapter:ddpm"


def test_without_diffusers_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="pip install diffusers"):
        SCHEDULERS["ddim"]()


def test_ddim_is_driven_by_its_own_alphas() -> None:
    """Against a loop written out here, with the noise that the exact denoiser implies."""
    scheduler, x = DDIMScheduler(clip_sample=False), START
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        alpha, sigma = (
            (scheduler.alphas_cumprod[t] ** 0.5).double(),
            ((1 - scheduler.alphas_cumprod[t]) ** 0.5).double(),
        )
        gain = alpha * 0.4 / (alpha**2 * 0.4 + sigma**2)
        x0 = 0.3 + gain * (x - alpha * 0.3)
        x = scheduler.step((x - alpha * x0) / sigma, t, x).prev_sample
    torch.testing.assert_close(SCHEDULERS["ddim"]().run(ORACLE, START, 10, NOISE), x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler), ("lms", LMSDiscreteScheduler)],
)
def test_sigmas_are_the_schedulers_own(name: str, kind: type) -> None:
    """Samples with alpha = 1, asked for at the sigma that the scheduler is at in each of its states."""
    scheduler, x = kind(), START * 80
    scheduler.set_timesteps(8)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].double()
        scheduler.scale_model_input(x, t)
        x0 = 0.3 + 0.4 / (0.4 + sigma**2) * (x - 0.3)
        x = scheduler.step((x - x0) / sigma, t, x).prev_sample
    found = SCHEDULERS[name]().run(ORACLE, START * 80, 8, NOISE)
    torch.testing.assert_close(found, x.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_visits_the_levels_that_are_told(name: str) -> None:
    target = SCHEDULERS[name]()
    grid, pattern = target.levels(20), Pattern.of(2, 1, 4)
    assert grid.sigma.numel() == 21
    values = (grid.sigma / grid.alpha).tolist()
    assert all(a > b for a, b in pairwise(values[:-1]))
    if name == "dpm_2m_karras_cosine":
        with pytest.raises(IndexError):
            observe(target, certain(pattern.x0), pattern.at(grid[0]), 20)
        return
    first = observe(target, certain(pattern.x0), pattern.at(grid[0]), 20).calls[0]
    assert (first.alpha, first.sigma) == pytest.approx((grid.alpha[0].item(), grid.sigma[0].item()))
    late = observe(target, certain(pattern.x0), pattern.at(grid[15]), 20, start=15).calls[0]
    if target.promise.starts_late:
        assert (late.alpha, late.sigma) == pytest.approx((grid.alpha[15].item(), grid.sigma[15].item()))


@pytest.mark.parametrize(
    "name", ["ddim", "euler", "dpm_2m", "flow_match_euler", "flow_match_heun", "heun", "pndm_plms"]
)
def test_added_noise_is_that_of_the_level(name: str) -> None:
    target, pattern = SCHEDULERS[name](), Pattern.of(2, 1, 16)
    for step in (0, 3, 9):
        place = pattern.place(target.spoil(pattern.x0, pattern.noise, 10, step))
        level = target.levels(10)[step]
        assert place.alpha == pytest.approx(level.alpha.item(), abs=1e-5)
        assert place.sigma == pytest.approx(level.sigma.item(), abs=1e-5)


def test_noise_is_a_rows_own() -> None:
    target = SCHEDULERS["euler_ancestral"]()
    both = target.run(ORACLE, START * 80, 6, NOISE)
    alone = target.run(ORACLE, START[1:] * 80, 6, NOISE.rows(slice(1, 2)))
    torch.testing.assert_close(alone[0], both[1])
    assert not torch.equal(both, target.run(ORACLE, START * 80, 6, KeyedNoise.from_seeds([5, 6])))


GOOD = ["dpm_2m_karras", "unipc", "heun", "euler_v", "euler_ancestral", "flow_match_euler"]


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_in_diffusers_passes(name: str) -> None:
    """Were the adapter at fault, these would fail."""
    ids = ("C1", "C6", "C7", "C9", "C12", "C14", "C16", "C17", "C18", "C20", "C22", "C22b", "C30", "C31")
    assert failures(SCHEDULERS[name](), *ids) == {}


def previous_is_wrong(spacing: str, num_steps: int) -> int:
    """At how many transitions diffusers' stride formula is not the next timestep."""
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    return sum(t - 1000 // num_steps != s for t, s in pairwise(scheduler.timesteps.tolist()))


@pytest.mark.parametrize("name", ["ddim_trailing", "ddim_linspace"])
def test_strides_are_counted_as_by_hand(name: str) -> None:
    spacing = name.removeprefix("ddim_")
    measured = failures(SCHEDULERS[name](), "C1")["C1"]
    for num_steps in (7, 13, 53):
        assert f"{previous_is_wrong(spacing, num_steps)} of {num_steps - 1} steps at N = {num_steps}" in measured


def test_the_log_variance_is_nan_in_raw_diffusers() -> None:
    scheduler = DDPMScheduler(variance_type="fixed_large_log")
    scheduler.set_timesteps(10)
    assert scheduler.step(START.float(), scheduler.timesteps[0], START.float()).prev_sample.isnan().all()
    assert "C18" in failures(SCHEDULERS["ddpm_fixed_large_log"](), "C18")
    assert failures(SCHEDULERS["ddpm_fixed_large"](), "C7", "C18") == {}


def test_noise_in_half_precision_is_lost_in_raw_diffusers() -> None:
    zero, one = torch.zeros(1, 4, dtype=torch.float16), torch.ones(1, 4, dtype=torch.float16)
    assert DDIMScheduler().add_noise(zero, one, torch.tensor([0])).abs().max() == 0
    assert "C11" in failures(SCHEDULERS["ddim"](), "C11")
    assert failures(SCHEDULERS["euler"](), "C11") == {}


def test_a_thousand_steps_repeat_a_timestep_in_raw_diffusers() -> None:
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(1000)
    assert len(set(scheduler.timesteps.tolist())) == 999
    assert set(failures(SCHEDULERS["dpm_2m"](), "C3", "C5")) == {"C3", "C5"}


def test_trailing_makes_one_step_too_many_in_raw_diffusers() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(61)
    assert (len(scheduler.timesteps), scheduler.timesteps[-1].item()) == (62, -1)
    assert "62 steps at N = 61" in failures(SCHEDULERS["ddim_trailing"](), "C2")["C2"]


def test_deis_ends_with_noise_in_raw_diffusers() -> None:
    for config, name in (({}, "deis"), ({"use_karras_sigmas": True}, "deis_karras")):
        scheduler = DEISMultistepScheduler(**config)
        scheduler.set_timesteps(20)
        assert scheduler.sigmas[-1] > 0.01
        assert "sigma = 0.01" in failures(SCHEDULERS[name](), "C17")["C17"]


def test_one_step_starts_at_the_clean_end_in_raw_diffusers() -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0]
    assert failures(SCHEDULERS["euler"](), "C4") == {"C4": "sigma/alpha = 0.01 at N = 1"}


def test_churn_leaves_its_noise_in_raw_diffusers() -> None:
    scheduler, x0, noise = EulerDiscreteScheduler(), torch.zeros(1, 10000), torch.randn(1, 10000)
    scheduler.set_timesteps(10)
    x: Tensor = x0 + scheduler.sigmas[0] * noise
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step((x - x0) / scheduler.sigmas[i], t, x, s_churn=10.0).prev_sample
    assert x.std() > 0.1
    assert "noise of 0.2" in failures(SCHEDULERS["euler_churn"](), "C22")["C22"]


def test_lms_started_late_leaves_noise_in_raw_diffusers() -> None:
    scheduler, x0, noise = LMSDiscreteScheduler(), torch.full((1, 4), 0.5), torch.ones(1, 4)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(7)
    x: Tensor = x0 + scheduler.sigmas[7] * noise
    for i in range(7, 10):
        scheduler.scale_model_input(x, scheduler.timesteps[i])
        x = scheduler.step((x - x0) / scheduler.sigmas[i], scheduler.timesteps[i], x).prev_sample
    assert (x - x0).abs().max() > 0.005
    assert set(failures(SCHEDULERS["lms"](), "C12", "C31")) == {"C12", "C31"}


def test_pndm_started_late_lags_behind_in_raw_diffusers() -> None:
    """As in image-to-image: from the third call on, x holds the noise of the step before."""
    scheduler, x0, noise = (
        PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True),
        torch.zeros(1, 4),
        torch.ones(1, 4),
    )
    scheduler.set_timesteps(10)
    late = scheduler.timesteps[7:]
    x: Tensor = scheduler.add_noise(x0, noise, late[:1])
    for i, t in enumerate(late):
        sigma = ((1 - scheduler.alphas_cumprod[t]) ** 0.5).item()
        assert (x.mean().item() == pytest.approx(sigma, rel=1e-4)) is (i < 2)
        x = scheduler.step(x / sigma, t, x).prev_sample
    assert "off by 0." in failures(SCHEDULERS["pndm_plms"](), "C12")["C12"]


def test_equal_timesteps_end_out_of_bounds_in_raw_diffusers() -> None:
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[:2].tolist() == [998, 998]

    def run() -> None:
        for t in scheduler.timesteps:
            scheduler.step(START.float(), t, START.float())

    with pytest.raises(IndexError):
        run()
    assert "IndexError" in failures(SCHEDULERS["dpm_2m_karras_cosine"](), "C18")["C18"]


def test_four_points_are_needed_in_raw_diffusers() -> None:
    for num_steps in (1, 2, 3):
        with pytest.raises(ValueError, match="broadcast"):
            PNDMScheduler().set_timesteps(num_steps)
    assert "(3 of 50: 1, 2, 3)" in failures(SCHEDULERS["pndm"](), "C18")["C18"]


def test_the_offset_leaves_the_table_in_raw_diffusers() -> None:
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[0].item() == 1000
    assert "index 1000 is out of bounds" in failures(SCHEDULERS["ddim_stable_diffusion"](), "C3")["C3"]


def test_the_last_alpha_is_that_of_training_in_raw_diffusers() -> None:
    assert PNDMScheduler().final_alpha_cumprod < 1
    assert DDIMScheduler().final_alpha_cumprod == 1
    assert "sigma = 0.01" in failures(SCHEDULERS["pndm_plms"](), "C17")["C17"]
    assert failures(SCHEDULERS["ddim"](), "C17") == {}


def test_leading_starts_below_the_top_in_raw_diffusers() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0].item() == 950
    assert "97.1 at N = 20" in failures(SCHEDULERS["ddim"](), "C4")["C4"]
    assert failures(SCHEDULERS["ddim_trailing"](), "C4") == {}


def test_times_and_sigmas_part_in_raw_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    wanted, times = scheduler.sigmas.clone(), scheduler.timesteps.tolist()
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.timesteps.tolist() == times
    assert (scheduler.sigmas - wanted).abs().max() > 0.1
    assert "timesteps" in failures(SCHEDULERS["flow_match_euler_shift"](), "C10")["C10"]
    assert failures(SCHEDULERS["flow_match_euler"](), "C10") == {}


def test_two_runs_get_in_each_others_way_in_raw_diffusers() -> None:
    scheduler, samples = EulerDiscreteScheduler(), [torch.ones(1, 4) * 100, torch.ones(1, 4) * 50]
    scheduler.set_timesteps(4)

    def run() -> None:
        for t in scheduler.timesteps:
            for x in samples:
                scheduler.scale_model_input(x, t)
                scheduler.step(x, t, x)

    with pytest.raises(IndexError):
        run()
    assert "C21" in failures(SCHEDULERS["euler"](), "C21")
    assert failures(SCHEDULERS["ddpm"](), "C21") == {}, "its step looks nothing up on itself"


def test_the_shift_is_applied_twice_in_raw_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    trained = scheduler.sigmas[-1].item()
    scheduler.set_timesteps(1000)
    assert (trained, scheduler.sigmas[-2].item()) == pytest.approx((0.002994, 0.0089286), rel=1e-3)
    assert "0.0089286" in failures(SCHEDULERS["flow_match_euler_shift"](), "C9")["C9"]


def test_clipping_keeps_the_old_noise_in_raw_diffusers() -> None:
    assert "C19" in failures(SCHEDULERS["ddim_clip_sample"](), "C19")
    target = SCHEDULERS["ddim_clip_sample"]()
    right = SchedulerTarget(
        name="right",
        scheduler=target.scheduler,
        path="table",
        promise=target.promise,
        trained=target.trained,
        arguments={"use_clipped_model_output": True},
    )
    assert failures(right, "C19") == {}


def test_every_known_failure_has_its_kind() -> None:
    kinds = ("bug: ", "documented default ", "documented default: ", "by design: ", "limit ", "told by a warning: ")
    for target in every().values():
        assert set(target.promise.notes) <= set(STATEMENTS)
        for note in target.promise.notes.values():
            assert note.startswith(kinds), note
