"""A draw depends on its address and on nothing else."""

from __future__ import annotations

import random
import threading

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.randomness import generator, torch_seed

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
positions = st.lists(st.integers(0, 2**63 - 1) | texts, max_size=4).map(tuple)
addresses = st.tuples(st.integers(0, 2**63 - 1), texts, positions)
Address = tuple[int, str, tuple[int | str, ...]]


def draw(address: Address) -> list[float]:
    seed, purpose, position = address
    return generator(seed, purpose, *position).random(4).tolist()


@given(address=addresses, others=st.lists(addresses, max_size=5))
def test_what_was_drawn_elsewhere_before_does_not_matter(address: Address, others: list[Address]) -> None:
    expected = draw(address)
    for other in others:
        draw(other)
    assert draw(address) == expected


@given(one=addresses, other=addresses)
def test_different_addresses_draw_different_numbers(one: Address, other: Address) -> None:
    assume(one != other)
    assert draw(one) != draw(other)
    assert torch_seed(one[0], one[1], *one[2]) != torch_seed(other[0], other[1], *other[2])


def test_addresses_that_look_alike_are_different() -> None:
    alike: list[Address] = [
        (1, "noise", (1,)),
        (1, "noise", ("1",)),
        (1, "noise", (1, "")),
        (1, "noise", ("1, 2",)),
        (1, "noise", ("1", "2")),
        (1, "noise", (1, 2)),
        (1, "noise', (1", (2,)),
        (11, "noise", ()),
        (1, "1noise", ()),
    ]
    assert len({tuple(draw(address)) for address in alike}) == len(alike)


def test_numbers_of_numpy_are_the_same_address_as_those_of_python() -> None:
    assert draw((np.int64(3), "order", (np.int32(5), np.str_("a")))) == draw((3, "order", (5, "a")))  # type: ignore[arg-type]


def test_global_random_numbers_are_neither_read_nor_used_up() -> None:
    expected = draw((1, "noise", ("a", 2)))
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert draw((1, "noise", ("a", 2))) == expected
    torch_seed(1, "dropout", 7, 0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert after == before


def test_threads_draw_the_same_as_one_after_another() -> None:
    places: list[Address] = [(5, "noise", ("image", place)) for place in range(64)]
    found: dict[int, list[float]] = {}

    def draw_some(first: int) -> None:
        for place in range(first, 64, 4):
            found[place] = draw(places[place])

    threads = [threading.Thread(target=draw_some, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(64)] == [draw(address) for address in places]


@given(address=addresses)
def test_a_seed_for_torch_is_one_that_torch_takes(address: Address) -> None:
    seed = torch_seed(address[0], address[1], *address[2])
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_first_draws_of_many_addresses_are_spread_evenly() -> None:
    first = np.array([generator(0, "timestep", place).random() for place in range(4096)])
    counts, _ = np.histogram(first, bins=8, range=(0, 1))
    assert counts.min() > 400  # of 512 expected in each
    assert counts.max() < 624
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_the_numbers_are_those_of_earlier_versions() -> None:
    """Were they others, every checkpoint of today would continue with other noise."""
    draws = generator(42, "noise", "0123456789abcdef", 3, 1)
    assert draws.standard_normal(3, dtype=np.float32).tolist() == [
        0.3897658884525299,
        -0.155278742313385,
        -1.5153449773788452,
    ]
    assert generator(42, "order", 7).permutation(8).tolist() == [3, 2, 6, 7, 5, 1, 4, 0]
    assert generator(42, "timestep", "a", 0, 0).integers(0, 1000) == 379
    assert torch_seed(42, "dropout", 10, 0, 0) == 4571554721491568396
