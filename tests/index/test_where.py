"""Filters: what is understood, and what is refused with the words that are not."""

from __future__ import annotations

import pytest

from hystar_fast.index.where import Condition, Where


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", [Condition("a", ("b",))]),
        (" year = 2024 ", [Condition("year", ("2024",))]),
        ("path^=trips/2024/", [Condition("path", ("trips/2024/",), prefix=True)]),
        ("a in (x, 'y z',\"q\")", [Condition("a", ("x", "y z", "q"))]),
        (
            "a=x and b in (y) AND path^='and '",
            [Condition("a", ("x",)), Condition("b", ("y",)), Condition("path", ("and ",), True)],
        ),
        (r"a='it\'s'", [Condition("a", ("it's",))]),
        (r'a="a\\b"', [Condition("a", ("a\\b",))]),
        ("a=''", [Condition("a", ("",))]),
        ("id='caf\udce9.jpg'", [Condition("id", ("caf\udce9.jpg",))]),
        ("a=b=c", [Condition("a", ("b=c",))]),
    ],
)
def test_a_filter_is_parsed(text, expected):
    assert list(Where.parse(text).conditions) == expected


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", "''"),
        ("a", "'a'"),
        ("a=b or c=d", "'or c=d'"),
        ("a=b and", "'and'"),
        ("a in ()", r"'\)'"),
        ("a in (b", "''"),
        ("a in (b c)", r"'c\)'"),
        ("a=", "''"),
        ("=b", "'=b'"),
        ("a^b", "'a\\^b'"),
        ("a='b", '"\'b"'),
        ("a=b; DROP TABLE items", "'DROP TABLE items'"),
        ("1a=b", "'1a=b'"),
        ("a like b", "'a like b'"),
    ],
)
def test_what_is_not_understood_is_shown(text, rest):
    with pytest.raises(ValueError, match=rf"where must be field=value.*{rest}"):
        Where.parse(text)
