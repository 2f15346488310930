"""Loading ahead."""

from __future__ import annotations

import threading

import pytest

from cema.bench.prefetch import prefetch


def test_everything_comes_in_order() -> None:
    assert list(prefetch(lambda i: i, 20, ahead=3, threads=3)) == list(range(20))
    assert list(prefetch(lambda i: i, 0)) == []


def test_the_next_is_loaded_while_the_consumer_works() -> None:
    loaded = [threading.Event() for _ in range(4)]

    def load(index: int) -> int:
        loaded[index].set()
        return index

    items = prefetch(load, 4, ahead=2, threads=1)
    assert next(items) == 0
    # Two more are made without anybody asking, and no third one.
    assert loaded[1].wait(10)
    assert loaded[2].wait(10)
    assert not loaded[3].is_set()
    assert list(items) == [1, 2, 3]


def test_an_error_comes_at_its_place() -> None:
    def load(index: int) -> int:
        if index == 2:
            raise OSError("no such file")
        return index

    items = prefetch(load, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="no such file"):
        next(items)


def test_a_consumer_may_stop_early() -> None:
    items = prefetch(lambda i: i, 1000, ahead=2)
    next(items)
    items.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("wrong", [{"ahead": 0}, {"threads": 0}])
def test_at_least_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(prefetch(lambda i: i, 1, **wrong))
