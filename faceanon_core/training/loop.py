"""The loop all three networks are trained with: cosine rate, clipped gradients, moving average, checkpoints, resuming."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

Parts = dict[str, Tensor]  # what a step tells about itself: name -> detached scalar


@dataclass(frozen=True)
class Run:
    """One training run. `name` gives the checkpoint `work/<name>.ckpt` its name."""

    name: str
    work: Path
    steps: int
    ema: float
    checkpoint_every: int
    log_every: int
    minutes: float = 1e9  # stop early after this long, with a checkpoint written


class Ema:
    """Exponential moving average of a module's parameters, kept beside the module."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [parameter.detach() for _, parameter in module.named_parameters()]
        torch._foreach_lerp_(list(self.values.values()), parameters, 1 - decay)

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


def cosine_rate(progress: float, warmup: float = 0.03) -> float:
    """Learning-rate factor 0..1 at `progress` 0..1: linear warm-up, then cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (progress - warmup) / (1 - warmup)))))


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write a training checkpoint so that a crash never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, object] | None:
    """Read a checkpoint written by `save_checkpoint`, or None where there is none yet."""
    if not path.is_file():
        return None
    state: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def train(
    run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_at: Callable[[int], tuple[Tensor, Parts]],
    on_checkpoint: Callable[[Ema], None] = lambda _: None,
) -> Ema:  # fmt: skip
    """Train `model` in place, or go on where its checkpoint stands.

    Args:
        optimizer: every group's `lr` is its rate at the peak of the schedule.
        loss_at: step -> loss and what to log about it; must depend on the step alone, so that a run resumes exactly.
            Scalars are read only where they are logged: reading one makes a GPU wait.
        on_checkpoint: called with the averaged weights whenever a checkpoint was written.
    Returns: the averaged weights.
    """
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    ema, first = Ema(model, run.ema), 0
    path = run.work / f"{run.name}.ckpt"
    if (state := load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])  # type: ignore[arg-type]
        optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        ema.load(state["ema"])  # type: ignore[arg-type]
        first = int(state["step"])  # type: ignore[call-overload]
    began = time.time()
    for step in range(first, run.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * cosine_rate(step / run.steps)
        loss, parts = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step)
        spent = time.time() - began
        if step % run.log_every == 0:
            said = " ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            log.info("%s step %d/%d %s %.0f s", run.name, step, run.steps, said, spent)
        time_is_up = spent > run.minutes * 60
        if (step + 1) % run.checkpoint_every == 0 or step + 1 == run.steps or time_is_up:
            values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.values}
            save_checkpoint(path, {**values, "step": step + 1})
            on_checkpoint(ema)
        if time_is_up:
            break
    return ema
