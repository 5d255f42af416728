"""`layout`: reshapes that scramble axes are told from those that merge or divide them (C8)."""

from __future__ import annotations

import pytest

from dlrun.checks.layout import scrambled

N = 13
SCRAMBLED = [
    ((N, 3, 32, 32), (N, 32, 32, 3)),  # channels last by a view
    ((N, 16, 8, 8), (N, 64, 16)),  # tokens by a view
    ((N, 64, 16), (N, 16, 8, 8)),  # and back
    ((N, 50, 64), (N, 4, 50, 16)),  # heads of attention
    ((N, 4, 50, 16), (N, 50, 64)),  # joined again
    ((N, 3, 32, 32), (N, 64, 48)),  # patches of 4
    ((N, 1, 28, 28), (N, 49, 16)),
    ((N, 3, 8, 8, 4, 4), (N, 64, 48)),  # after unfold
    ((N, 3, 32, 24), (N, 3, 8, 6, 4, 4)),  # windows
    ((N, 32, 24, 16), (N, 8, 6, 4, 4, 16)),
    ((N, 64, 26, 26), (N, 256, 13, 13)),  # space to depth
    ((N, 48, 49), (N, 49, 48)),  # unfold's columns
    ((N, 64, 1, 25), (N, 25, 64)),  # columns of a text line
]
SOUND = [
    ((N, 3, 32, 32), (N, 3072)),
    ((N, 16, 8, 8), (N, 16, 64)),
    ((N, 50, 64), (N, 50, 4, 16)),
    ((N, 50, 4, 16), (N, 50, 64)),
    ((N, 50, 192), (N, 50, 3, 4, 16)),
    ((N, 1, 28, 28), (N, 28, 28)),  # rows as a sequence
    ((N, 1, 16, 16), (N, 16, 16)),
    ((N, 3, 32, 32), (N, 3, 8, 4, 8, 4)),
    ((N, 32, 24, 16), (N, 8, 4, 6, 4, 16)),
    ((N, 64, 8, 8), (N, 2, 32, 8, 8)),  # groups
    ((N, 64, 1, 1), (N, 64)),
    ((N, 1, 28, 28), (N, 784, 1)),
    ((N, 4, 16), (N * 4, 16)),  # another batch
]


@pytest.mark.parametrize(("before", "after"), SCRAMBLED)
def test_a_view_in_place_of_a_permute_is_seen(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    assert scrambled(before, after, N)


@pytest.mark.parametrize(("before", "after"), SOUND)
def test_axes_that_are_merged_or_divided_are_sound(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    assert scrambled(before, after, N) is None
