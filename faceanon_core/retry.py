"""Make faces again until every recogniser takes them for other people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .identity import Verdict


@dataclass(frozen=True)
class Retried:
    """`results` (faces, 3, S, S), each from its last try; per face its verdicts and number of tries; rows that failed."""

    results: Tensor
    verdicts: list[list[Verdict]]
    tries: list[int]
    failed: list[int]


def until_anonymous(
    make: Callable[[int], Tensor], judge: Callable[[Tensor], list[list[Verdict]]], people: Sequence[int], tries: int
) -> Retried:
    """Repeat until all faces pass, at most `tries` times; a face that passed stays as it is.

    Args:
        make: all faces for a try counted from 0, (faces, 3, S, S) float 0..1.
        judge: the verdicts on each of such faces.
        people: whose each face is; all faces of a person are made again together, as in the frames of a video.
    """
    results = make(0)
    verdicts, taken = judge(results), [1] * len(people)
    failed = _rows_of_failing_people(verdicts, people)
    for attempt in range(1, tries):
        if not failed:
            break
        again = torch.zeros(len(people), dtype=torch.bool, device=results.device)
        again[failed] = True
        results = torch.where(again[:, None, None, None], make(attempt), results)
        taken = [attempt + 1 if row in failed else count for row, count in enumerate(taken)]
        verdicts = judge(results)
        failed = _rows_of_failing_people(verdicts, people)
    return Retried(results, verdicts, taken, failed)


def _rows_of_failing_people(verdicts: list[list[Verdict]], people: Sequence[int]) -> list[int]:
    failing = {
        person for person, of_face in zip(people, verdicts, strict=True) if not all(verdict.passed for verdict in of_face)
    }
    return [row for row, person in enumerate(people) if person in failing]
