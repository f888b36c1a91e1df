"""A command line with one flag of every kind, for the tests of runtime/cli.py and of --config."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.cli import flag, parse


@dataclass
class Example:
    """One flag of every kind."""

    needed: str = flag(..., "must be given")
    count: int = flag(3, "a number of 100 % of things", minimum=1, maximum=9)
    rate: float = flag(0.5, "a rate", above=0)
    limit: int | None = flag(None, "perhaps a number", minimum=1)
    names: list[str] = flag(["a", "b"], "some names")
    quick: bool = flag(True, "a switch")
    way_to: str = flag("up", "one of two", choices=("up", "down"))
    sizes: list[int] = flag([2], "some numbers", minimum=1, maximum=9)


def example(*argv: str) -> Example:
    return parse(Example, "An example.", argv=list(argv))
