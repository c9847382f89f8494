"""Reading keys of config.json, with errors that say what was found."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

Config = dict[str, Any]
_MOST = 100_000  # experts, layers or channels; a larger number is a mistake


class ConfigError(ValueError):
    """config.json is not recognised, lacks a key or contradicts itself."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: {found}, expected {expected}")
        self.key, self.found, self.expected = key, found, expected


@dataclass(frozen=True, slots=True)
class Key:
    """A numeric or boolean key; `default` where it is absent or null, None if it must be there."""

    name: str
    default: float | None = None

    def number(self, config: Config) -> float:
        value = config.get(self.name)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one entry per layer, all the same
        if value is None:
            value = self.default
        if not isinstance(value, bool | int | float) or not isfinite(value):
            raise ConfigError(self.name, "absent" if value is None else repr(value), "a number")
        return value

    def integer(self, config: Config) -> int:
        value = self.number(config)
        if value != int(value) or not 0 <= value <= _MOST:
            raise ConfigError(self.name, repr(value), f"an integer, 0..{_MOST:,}")
        return int(value)

    def flag(self, config: Config) -> bool:
        return bool(self.number(config))


def kinds_of_layers(config: Config, *keys: str) -> list[str]:
    """The first of these keys that lists, per layer, what kind it is; [] if none does."""
    for key in keys:
        kinds = config.get(key)
        if isinstance(kinds, str | list) and kinds:
            return [str(kind) for kind in kinds]
    return []
