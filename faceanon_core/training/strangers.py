"""What a recogniser says of other people of the same kind: the figures of results cannot be read without these.

A result keeps its source's expression and skin tone, and mostly sex and age. Recognisers take people who share these for one
another far more often than people at random, from whom the thresholds come.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..attributes import Attributes
from .crowd import Crowd, rates
from .data import FaceSet
from .labels import label_faces

_SHARED = ("sex", "age", "ethnicity", "skin", "expression", "glasses")  # the first ones matter most
_FEWEST = 3  # people of a kind, below which the next thing in common is not asked for
_EACH = 5  # people compared with each face


def compare_strangers(crowd: Crowd, strangers: FaceSet) -> dict[str, Any]:
    """Put other people in the place of the results: whole pictures of theirs, of which nothing is the source's.

    Args:
        crowd: the sources.
        strangers: people of the same source sets, none of them in the crowd.
    Returns: the figures that `rates` gives, of up to five people for each source, and "people", their count.
    """
    kinds = label_faces(strangers)
    groups = crowd.group_of(strangers)
    rng = np.random.default_rng(0)
    likenesses = []
    for i, known in enumerate(label_faces(crowd.faces)):
        alike = _of_kind([j for j, group in enumerate(groups) if group == crowd.groups[i]], kinds, known)
        for j in rng.choice(alike, min(_EACH, len(alike)), replace=False):
            likenesses.append(crowd.compare(i, strangers.image(j), strangers.landmarks[j]))
    return {"people": len(likenesses), **rates(likenesses)}


def _of_kind(people: list[int], kinds: list[Attributes], known: Attributes) -> list[int]:
    """Those who share with a face as much as a few people do."""
    for name in _SHARED:
        if name in known:
            narrower = [j for j in people if kinds[j].get(name) == known[name]]
            people = narrower if len(narrower) >= _FEWEST else people
    return people
