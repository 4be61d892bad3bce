"""The loop that makes faces again."""

from __future__ import annotations

import torch

from faceanon_core.identity import Verdict
from faceanon_core.judge import Judgement
from faceanon_core.retry import Retried, until_anonymous


def run(passes_at: list[int], people: list[int], tries: int):
    """Faces whose pixels hold the try they come from; face i passes from try passes_at[i] on.

    Returns: also the faces that each try made.
    """
    made: list[list[int]] = []

    def make(attempt: int, pushes: int, faces: list[int]) -> torch.Tensor:
        assert attempt == len(made)
        made.append(faces)
        return torch.full((len(faces), 3, 2, 2), float(attempt))

    def judge(results: torch.Tensor) -> list[Judgement]:
        shown = results[:, 0, 0, 0].tolist()
        verdicts = [Verdict("a", -shown_at, -needed) for shown_at, needed in zip(shown, passes_at, strict=True)]
        return [Judgement(True, [verdict]) for verdict in verdicts]

    return until_anonymous(make, judge, people, tries), made


def test_faces_that_pass_at_once_are_made_once() -> None:
    done, made = run([0, 0], [0, 1], 4)
    assert made == [[0, 1]] and done.failed == [] and done.tries == [1, 1]


def test_a_face_that_passed_stays_as_it_is_and_is_not_made_again() -> None:
    done, made = run([0, 2], [0, 1], 4)
    assert made == [[0, 1], [1], [1]] and done.failed == []
    assert done.results[:, 0, 0, 0].tolist() == [0, 2] and done.tries == [1, 3]


def test_all_faces_of_a_person_are_made_again_together() -> None:
    done, made = run([0, 1, 0], [5, 5, 7], 4)
    assert made == [[0, 1, 2], [0, 1]]
    assert done.results[:, 0, 0, 0].tolist() == [1, 1, 0]


def test_after_the_last_try_the_faces_of_failing_people_are_named() -> None:
    done, made = run([9, 0, 0], [0, 0, 1], 3)
    assert len(made) == 3 and done.failed == [0, 1] and done.tries == [3, 3, 1]


def test_a_face_that_is_none_is_made_again_with_no_harder_push_and_one_that_is_too_alike_with_one() -> None:
    pushed: list[int] = []
    found = iter([Judgement(False), Judgement(True, [Verdict("a", 0.6, 0.5)]), Judgement(False), Judgement(True)])

    def make(attempt: int, pushes: int, faces: list[int]) -> torch.Tensor:
        pushed.append(pushes)
        return torch.zeros(1, 3, 2, 2)

    done = until_anonymous(make, lambda results: [next(found)], [0], 9)
    assert pushed == [0, 0, 1, 1] and done.tries == [4] and done.failed == []


def test_the_reason_names_each_problem_once() -> None:
    alike = Judgement(True, [Verdict("a", 0.6, 0.5), Verdict("b", 0.1, 0.5)])
    done = Retried(
        torch.zeros(4, 3, 2, 2), [Judgement(False), alike, Judgement(False), Judgement(True)], [2] * 4, [0, 1, 2, 3]
    )
    assert done.reason == (
        "after 2 tries no face is recognisable in the result; "
        "it still looks like the source (a: similarity 0.60, at most 0.50 was asked)"
    )
