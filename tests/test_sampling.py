"""The sampler against closed-form answers and against diffusers' schedulers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from faceanon_core.diffusion import SCHEDULE_CONFIG, schedule_sigmas
from faceanon_core.errors import AnonymizationError, InputError
from faceanon_core.sampling import Step, ancestral_step, sample_guided, seeded_noise

SIGMAS = torch.tensor([10.0, 4.0, 1.5, 0.5, 0.0], dtype=torch.float64)
CONSTANT = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64).view(1, 4, 1, 1).expand(1, 4, 8, 8)


def constant(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
    """The ideal denoiser of data that is one single picture."""
    return CONSTANT.to(x).expand_as(x)


def gaussian(mean: float, std: float):
    """The ideal denoiser of data distributed as N(mean, std^2)."""

    def denoise(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return mean + std**2 / (std**2 + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)

    return denoise


class Pull:
    """A guidance with a constant gradient, active within a part of the schedule."""

    def __init__(self, gradient: float, start: float = 0.0, end: float = 1.0) -> None:
        self.value, self.start, self.end = gradient, start, end

    def active(self, progress: float) -> bool:
        return self.start <= progress < self.end

    def gradient(self, denoised: Tensor, progress: float) -> tuple[Tensor, dict[str, float]]:
        return torch.full_like(denoised, self.value), {"toward": 1.0}


def noisy(sigma: float = 10.0, seed: int = 1) -> Tensor:
    return sigma * torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(denoiser=constant, sigmas: Tensor = SIGMAS, seed: int = 0, **options: Any) -> Tensor:
    return sample_guided(denoiser, noisy(float(sigmas[0])), sigmas, None, seeded_noise(seed), **options)


def ddim_scheduler(steps: int) -> Any:
    from diffusers import DDIMScheduler

    config = {**SCHEDULE_CONFIG, "prediction_type": "epsilon", "clip_sample": False, "timestep_spacing": "trailing"}
    ddim = DDIMScheduler(**config)
    ddim.set_timesteps(steps)
    return ddim


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_data_of_one_picture_is_sampled_exactly(eta: float) -> None:
    assert torch.equal(run(eta=eta), CONSTANT)


def test_each_step_towards_a_single_picture_follows_the_closed_form() -> None:
    x, noise, seen = noisy(), seeded_noise(0), []
    sample_guided(lambda x, s, c: seen.append(x) or constant(x, s, c), x, SIGMAS, None, seeded_noise(0))
    for index, got in enumerate(seen):
        assert torch.allclose(got, x, atol=1e-12)
        down, up = ancestral_step(SIGMAS[index], SIGMAS[index + 1])
        x = CONSTANT + (x - CONSTANT) * down / SIGMAS[index] + up * noise(x)


def test_without_noise_a_gaussian_follows_the_probability_flow() -> None:
    mean, std = 0.7, 1.3
    sigmas = torch.cat([torch.logspace(1, -3, 2000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    got = run(gaussian(mean, std), sigmas, eta=0.0)
    expected = mean + (noisy() - mean) * std / (std**2 + 10.0**2) ** 0.5
    assert torch.allclose(got, expected, atol=0.01)


def test_with_noise_a_gaussian_keeps_its_mean_and_spread() -> None:
    x = 0.7 + 40 * seeded_noise(9)(torch.zeros(64, 4, 8, 8, dtype=torch.float64))
    sigmas = torch.cat([torch.logspace(1.602, -3, 300, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    got = sample_guided(gaussian(0.7, 1.3), x, sigmas, None, seeded_noise(0))
    assert got.mean() == pytest.approx(0.7, abs=0.05)
    assert got.std() == pytest.approx(1.3, rel=0.03)


def test_a_constant_gradient_shifts_the_result_by_the_closed_form() -> None:
    """Two runs with the same noise differ by d' = d * sigma_down / sigma - sigma_up * g."""
    sigmas = SIGMAS[:-1]  # without the last step, which ends on the denoiser's own answer
    shift = torch.zeros((), dtype=torch.float64)
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following)
        shift = shift * down / sigma - up * 0.25
    difference = run(sigmas=sigmas, guidance=Pull(0.25)) - run(sigmas=sigmas)
    assert torch.allclose(difference, shift.expand_as(difference), atol=1e-12)
    assert shift < -0.1


def test_a_guidance_that_is_never_active_changes_no_bit() -> None:
    assert torch.equal(run(gaussian(0, 1), guidance=Pull(5.0, 1.0, 1.0)), run(gaussian(0, 1)))
    assert not torch.equal(run(gaussian(0, 1), guidance=Pull(5.0)), run(gaussian(0, 1)))


def test_guidance_runs_only_in_its_part_of_the_schedule_and_never_at_the_noiseless_end() -> None:
    steps: list[Step] = []
    run(guidance=Pull(1.0, 0.25, 0.75), callback=steps.append)
    assert [bool(step.losses) for step in steps] == [False, True, True, False]
    steps.clear()
    run(guidance=Pull(1.0), callback=steps.append)
    assert [bool(step.losses) for step in steps] == [True, True, True, False]


def test_guidance_without_fresh_noise_has_no_effect() -> None:
    assert torch.equal(run(gaussian(0, 1), guidance=Pull(5.0), eta=0.0), run(gaussian(0, 1), eta=0.0))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    assert torch.equal(run(gaussian(0, 1), seed=3), run(gaussian(0, 1), seed=3))
    assert not torch.equal(run(gaussian(0, 1), seed=3), run(gaussian(0, 1), seed=4))


def test_noise_depends_on_the_seed_alone() -> None:
    x = torch.zeros(2, 3)
    torch.manual_seed(0)
    first = seeded_noise(5)(x)
    torch.manual_seed(1)
    second = seeded_noise(5)(x.double())
    assert torch.equal(first, second.float())
    assert second.dtype == torch.float64


def test_the_callback_sees_every_step_once() -> None:
    steps: list[Step] = []
    run(callback=steps.append)
    assert [(step.index, step.count, step.sigma) for step in steps] == [(0, 4, 10), (1, 4, 4), (2, 4, 1.5), (3, 4, 0.5)]
    assert torch.equal(steps[-1].denoised, CONSTANT)


def test_an_exception_in_the_callback_stops_the_run() -> None:
    calls = []

    def stop(step: Step) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lambda x, s, c: calls.append(s) or constant(x, s, c), callback=stop)
    assert len(calls) == 2


def test_the_model_gets_one_sigma_per_picture_and_the_condition_as_it_is() -> None:
    def denoise(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        assert sigma.tolist() == [10.0, 10.0]
        assert cond == "anything"
        return x * 0

    sample_guided(denoise, noisy().repeat(2, 1, 1, 1), torch.tensor([10.0, 0.0]), "anything", seeded_noise(0))


@pytest.mark.parametrize("sigmas", [[1.0], [], [1.0, 1.0], [1.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
def test_a_schedule_that_does_not_decrease_is_refused(sigmas: list[float]) -> None:
    with pytest.raises(InputError, match="must have at least one step and decrease at each"):
        sample_guided(constant, noisy(), torch.tensor(sigmas), None, seeded_noise(0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_model_that_returns_no_numbers_is_caught_at_its_step(bad: float) -> None:
    with pytest.raises(AnonymizationError, match="returned NaN at step 3 of 4; nothing was made"):
        run(lambda x, sigma, c: constant(x, sigma, c) * (bad if sigma < 2 else 1))


@pytest.mark.parametrize("steps", [2, 20, 45])
def test_sigma_up_is_ddims_own_spread_in_k_diffusion_units(steps: int) -> None:
    """docs/METHOD.md: sigma_t / sqrt(alpha_bar_prev) = sigma_up, for eta = 1."""
    ddim, sigmas = ddim_scheduler(steps), torch.from_numpy(schedule_sigmas(steps)).double()
    for index, (t, previous) in enumerate(pairwise(ddim.timesteps)):
        spread = ddim._get_variance(t, previous).double() ** 0.5 / ddim.alphas_cumprod[previous].double() ** 0.5
        assert float(ancestral_step(sigmas[index], sigmas[index + 1])[1]) == pytest.approx(float(spread), rel=1e-3)


def test_a_step_is_a_ddim_step_at_eta_1() -> None:
    ddim, sigmas = ddim_scheduler(20), torch.from_numpy(schedule_sigmas(20)).double()
    x, noise = noisy(float(sigmas[4])), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    ours = sample_guided(gaussian(0.2, 0.9), x, sigmas[4:6], None, lambda x: noise)
    unit = (1 + sigmas[4] ** 2) ** 0.5
    eps = (x - gaussian(0.2, 0.9)(x, sigmas[4].view(1), None)) / sigmas[4]
    theirs = ddim.step(eps, ddim.timesteps[4], x / unit, eta=1.0, variance_noise=noise).prev_sample
    assert torch.allclose(ours / (1 + sigmas[5] ** 2) ** 0.5, theirs.double(), atol=1e-4)


def test_a_whole_run_equals_diffusers_euler_ancestral() -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    config = {**SCHEDULE_CONFIG, "prediction_type": "epsilon", "timestep_spacing": "trailing"}
    theirs = EulerAncestralDiscreteScheduler(**config)
    theirs.set_timesteps(10)
    sigmas, denoise = theirs.sigmas, gaussian(0.2, 0.9)
    x = noisy(float(sigmas[0])).float()
    ours = sample_guided(denoise, x, sigmas, None, seeded_noise(7))
    generator = torch.Generator().manual_seed(7)
    for sigma, t in zip(sigmas[:-1], theirs.timesteps, strict=True):
        eps = (x - denoise(x, sigma.view(1), None)) / sigma
        x = theirs.step(eps, t, x, generator=generator).prev_sample
    assert torch.allclose(ours, x, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_splits_the_next_noise_level_without_loss(eta: float) -> None:
    down, up = ancestral_step(torch.tensor(4.0), torch.tensor(1.5), eta)
    assert float(down**2 + up**2) == pytest.approx(1.5**2)
    assert float(up) == pytest.approx(eta * 1.5 * (1 - (1.5 / 4) ** 2) ** 0.5)


def test_the_last_step_adds_no_noise() -> None:
    assert [float(part) for part in ancestral_step(torch.tensor(0.5), torch.tensor(0.0))] == [0, 0]
