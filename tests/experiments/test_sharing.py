"""Options that commands share: a name that is no option is an error where the command is declared."""

from __future__ import annotations

import pytest

from hystar_fast.cli.sharing import shares


def pair(first: int = 1, second: int = 2) -> tuple[int, int]:
    return first, second


def test_what_is_left_out_stays_at_its_default_and_other_defaults_hold():
    @shares("both", pair, without=("second",), first=7)
    def given(both: tuple[int, int]) -> tuple[int, int]:
        return both

    assert given() == (7, 2) and given(first=3) == (3, 2)
    with pytest.raises(TypeError, match="second"):
        given(second=5)


def test_a_name_that_is_no_option_is_refused():
    with pytest.raises(TypeError, match="pair has no option seconds"):
        shares("both", pair, without=("seconds",))
    with pytest.raises(TypeError, match="pair has no option third"):
        shares("both", pair, third=3)
