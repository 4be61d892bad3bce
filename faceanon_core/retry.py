"""Make faces again until they are faces of other people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .judge import Judgement

TRY_SEED = 7919  # between the seeds of two tries
_MOVE, _PULL = 0.15, 1.1  # a push adds to the proportions, and multiplies the strength


@dataclass(frozen=True)
class Retried:
    """`results` (faces, 3, S, S), each from its last try; per face its judgement and number of tries; rows that failed."""

    results: Tensor
    judgements: list[Judgement]
    tries: list[int]
    failed: list[int]

    @property
    def reason(self) -> str:
        """Why faces failed, for the user."""
        count = max(self.tries)
        problems = dict.fromkeys(self.judgements[row].problem for row in self.failed if not self.judgements[row].passed)
        return f"after {count} {'try' if count == 1 else 'tries'} {'; '.join(problems)}"


def until_anonymous(
    make: Callable[[int, int, list[int]], Tensor], judge: Callable[[Tensor], list[Judgement]], people: Sequence[int],
    tries: int,
) -> Retried:  # fmt: skip
    """Repeat until all faces pass, at most `tries` times; a face that passed stays as it is.

    Args:
        make: (rows, 3, S, S) float 0..1 for a try counted from 0, the number of earlier ones after which a face was too
            alike, and the rows of the faces to make. Only these tries call for a harder push, which would ruin a face that
            is none even more.
        judge: the judgement on each of all faces.
        people: whose each face is; all faces of a person are made again together, as in the frames of a video.
    """
    results = make(0, 0, list(range(len(people))))
    judgements, taken, pushes = judge(results), [1] * len(people), 0
    failed = _rows_of_failing_people(judgements, people)
    for attempt in range(1, tries):
        if not failed:
            break
        pushes += any(judgements[row].shows_source for row in failed)
        results = results.index_copy(0, torch.tensor(failed, device=results.device), make(attempt, pushes, failed))
        taken = [attempt + 1 if row in failed else count for row, count in enumerate(taken)]
        judgements = judge(results)
        failed = _rows_of_failing_people(judgements, people)
    return Retried(results, judgements, taken, failed)


@dataclass(frozen=True)
class Push:
    """What hides a person better when it grows: guidance `strength`, `proportions` and `drawn` as in `pipeline.Settings`."""

    strength: float
    proportions: float
    drawn: float


def push_harder(start: Push, pushes: int) -> Push:
    """After that many pushes: the features move further, drawn to the last step, and the pull grows a little.

    Proportions hide a person; much more pull only stains the face. Zeros stay.
    """
    if not pushes:
        return start
    moved = min(2.0, start.proportions + _MOVE * pushes) if start.proportions else 0.0
    return Push(start.strength * _PULL**pushes, max(start.proportions, moved), 1.0 if start.proportions else start.drawn)


def _rows_of_failing_people(judgements: list[Judgement], people: Sequence[int]) -> list[int]:
    failing = {person for person, judgement in zip(people, judgements, strict=True) if not judgement.passed}
    return [row for row, person in enumerate(people) if person in failing]
