"""Options that several commands have, declared once: those of a function take the place of a parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def shares(
    parameter: str, make: Callable[..., Any], *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A decorator: instead of `parameter` a function takes the options of `make`, and gets what that makes of them.

    Args:
        parameter: of the function; its annotation is a plain name, which need not be imported at run time.
        make: all its parameters have defaults; one that is shared, too, may be among the decorated.
        without: options of `make` that stay at their defaults.
        defaults: other defaults than those of `make`.

    Raises:
        TypeError: `make` has no option of a name in `without` or `defaults`.

    Example:
        >>> def pair(first: int = 1, second: int = 2) -> tuple[int, int]:
        ...     return first, second
        >>> @shares("both", pair, second=5)
        ... def total(scale: int, both: tuple[int, int]) -> int:
        ...     return scale * sum(both)
        >>> total(scale=10, first=3), list(inspect.signature(total).parameters)
        (80, ['scale', 'first', 'second'])
    """
    parameters = _parameters(make)
    unknown = {*without, *defaults} - {option.name for option in parameters}
    if unknown:
        raise TypeError(f"{make.__name__} has no option {', '.join(sorted(unknown))}")
    options = {
        option.name: option.replace(default=defaults.get(option.name, option.default))
        for option in parameters
        if option.name not in without
    }

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def run(**given: Any) -> Result:
            made = make(**{name: given.pop(name, option.default) for name, option in options.items()})
            return function(**given, **{parameter: made})

        taken: list[inspect.Parameter] = []
        for own in _parameters(function, parameter):
            taken += options.values() if own.name == parameter else [own]
        run.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in taken}
        return run

    return decorate


def _parameters(function: Callable[..., Any], *besides: str) -> list[inspect.Parameter]:
    """Those of a function, by keyword and with their types; of `besides` and of the result these need not be there."""
    written = [function.__annotations__.get(name) for name in (*besides, "return")]
    hints = get_type_hints(
        function, localns={name: Any for name in written if isinstance(name, str)}, include_extras=True
    )
    return [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    ]
