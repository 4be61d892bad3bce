"""The loop that makes faces again."""

from __future__ import annotations

import torch

from faceanon_core.identity import Verdict
from faceanon_core.retry import until_anonymous


def run(passes_at: list[int], people: list[int], tries: int):
    """Faces whose pixels hold the try they come from; face i passes from try passes_at[i] on."""
    made: list[int] = []

    def make(attempt: int) -> torch.Tensor:
        made.append(attempt)
        return torch.full((len(people), 3, 2, 2), float(attempt))

    def judge(results: torch.Tensor) -> list[list[Verdict]]:
        shown = results[:, 0, 0, 0].tolist()
        return [[Verdict("a", -shown_at, -needed)] for shown_at, needed in zip(shown, passes_at, strict=True)]

    return until_anonymous(make, judge, people, tries), made


def test_faces_that_pass_at_once_are_made_once() -> None:
    done, made = run([0, 0], [0, 1], 4)
    assert made == [0] and done.failed == [] and done.tries == [1, 1]


def test_a_face_that_passed_stays_as_it_is_while_another_is_made_again() -> None:
    done, made = run([0, 2], [0, 1], 4)
    assert made == [0, 1, 2] and done.failed == []
    assert done.results[:, 0, 0, 0].tolist() == [0, 2] and done.tries == [1, 3]


def test_all_faces_of_a_person_are_made_again_together() -> None:
    done, _ = run([0, 1, 0], [5, 5, 7], 4)
    assert done.results[:, 0, 0, 0].tolist() == [1, 1, 0]


def test_after_the_last_try_the_faces_of_failing_people_are_named() -> None:
    done, made = run([9, 0, 0], [0, 0, 1], 3)
    assert made == [0, 1, 2] and done.failed == [0, 1] and done.tries == [3, 3, 1]
