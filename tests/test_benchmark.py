"""The instruments of `faceanon benchmark`; what they measure is no matter for tests."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import Tensor

from faceanon_core import benchmark_levers
from faceanon_core.benchmark import Measured, Way, benchmark, table, timed, watch_memory
from faceanon_core.benchmark_levers import Line, at_size
from faceanon_core.benchmark_solvers import sample_dpmpp_2m_sde
from faceanon_core.diffusion import schedule_sigmas
from faceanon_core.sampling import sample_guided, seeded_noise

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_peak_is_seen_though_it_is_gone_again() -> None:
    with watch_memory(CPU) as peak:
        held = torch.ones(50_000_000)  # 200 MB
        time.sleep(0.1)
        del held
        time.sleep(0.1)
    assert 190 < peak[0] < 230


def test_a_way_is_compared_with_the_one_it_names() -> None:
    names = ("unguided", "ours", "twice", "alone")
    others = {"twice": "ours", "alone": "left out"}
    ways = [Way(name, name, lambda: None, than=others.get(name, "unguided")) for name in names]
    measured = {way.key: Measured([1.0], [seconds], [1.0]) for way, seconds in zip(ways, (2.0, 3.0, 6.0, 1.0), strict=True)}
    rows = [line.split("|") for line in table(ways, measured)[2:]]
    assert [(row[1].strip(), row[4].strip()) for row in rows] == [
        ("unguided", "1.00"), ("ours", "1.50"), ("twice", "2.00"), ("alone", "-"),
    ]  # fmt: skip


@pytest.mark.parametrize(("longest_s", "said"), [(600, "2 runs,"), (0, "2 runs (1 where it took over 0 s),")])
def test_what_takes_long_is_not_run_again(longest_s: float, said: str) -> None:
    title, *rows = benchmark("demo", steps=2, runs=2, ways=("unguided", "ours"), longest_s=longest_s)
    assert said in title
    for row in rows[3:5]:
        smallest, largest = row.split("|")[3].split("(")[1].rstrip(") ").split("..")
        assert (smallest == largest) == (longest_s == 0)


def test_a_lever_that_fails_is_a_line_of_its_own() -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    seconds = {"step": 0.1}
    assert benchmark_levers._row(Line("compiled", fail, "step", compiles=True), seconds, CPU, 1).startswith(
        "| compiled | fails: RuntimeError |"
    )
    row = benchmark_levers._row(Line("four", lambda: time.sleep(0.2), "step", faces=4), seconds, CPU, 2)
    assert float(row.split("|")[3]) == pytest.approx(0.5, rel=0.2)  # 0.2 s for four faces against 0.1 s for one
    assert timed(lambda: time.sleep(0.1), CPU) >= 0.1


def test_latents_are_made_smaller_before_they_are_decoded(anonymizer, crop) -> None:
    latent = anonymizer.model.encode(crop.tensor)
    with torch.no_grad():
        assert at_size(anonymizer.model.decode, 16)(latent).shape == (1, 3, 128, 128)


@pytest.mark.parametrize("sampler", [sample_guided, sample_dpmpp_2m_sde])
def test_solvers_draw_from_a_distribution_whose_denoiser_is_known(sampler) -> None:
    """Of normal numbers with mean 2 and spread 1, the cleaned value is known."""

    def denoise(x: Tensor, sigma: Tensor, _: None) -> Tensor:
        variance = sigma[:, None, None, None] ** 2
        return (x + 2 * variance) / (1 + variance)

    sigmas, noise = torch.from_numpy(schedule_sigmas(60)), seeded_noise(0)
    x = 2 + sigmas[0] * noise(torch.empty(1, 4, 100, 100))
    made = sampler(denoise, x, sigmas, None, noise)
    assert float(made.mean()) == pytest.approx(2, abs=0.02)
    assert float(made.std()) == pytest.approx(1, abs=0.06)
