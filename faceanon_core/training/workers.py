"""Processes that share work out among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Crew:
    """`count` worker processes of one thread each. Use as a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(
            count, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def spread(self, work: Callable[[Sequence[T]], dict[K, V]], items: Sequence[T]) -> dict[K, V]:
        """Give every worker its share of the items and join what comes back.

        Args:
            work: picklable.
        """
        shares = [items[start :: self._count] for start in range(min(self._count, len(items)))]
        joined: dict[K, V] = {}
        for part in self._pool.map(work, shares):
            joined |= part
        return joined
