"""Checks that several config dataclasses share."""

from collections.abc import Sequence

from simmim.errors import ConfigError


def check_fraction(name: str, value: float, meaning: str, example: str) -> None:
    """Raise ``ConfigError`` unless 0 < ``value`` < 1."""
    if not 0 < value < 1:
        raise ConfigError(
            f"{name} is {meaning} and must lie strictly between 0 and 1, got {value:g}. {example}"
        )


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise ``ConfigError`` unless ``value`` is above 0 (or at least 0, with ``zero``)."""
    if value < 0 or (value == 0 and not zero):
        raise ConfigError(f"{name} must be {'at least' if zero else 'above'} 0, got {value:g}.")


def check_once(part: str, kinds: Sequence[str]) -> None:
    """Raise ``ConfigError`` where a kind is there twice: its flags would be of both."""
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ConfigError(f"the {part} {kind} is given {kinds.count(kind)} times, not once.")


def check_text(*paths: object) -> None:
    """Raise ``ConfigError`` where a path has bytes that are no UTF-8, which YAML does not keep."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the path {path} has bytes that are no UTF-8, which the config.yaml of a run "
                "cannot keep: rename it, or name a link to it. Files below it may have any names."
            ) from error
