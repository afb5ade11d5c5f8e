"""How a config is read from a recipe or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Config = TypeVar("Config", bound="FromSettings")


@dataclass
class FromSettings:
    """Base of the configs, without fields of its own."""

    @classmethod
    def from_settings(cls: type[Config], settings: Mapping[str, Any]) -> Config:
        """The config that a recipe's or a checkpoint's model section holds.

        Keys that are no field, such as fairseq's ``_name``, are left aside; fields without a key keep their defaults;
        YAML's lists become tuples.
        """
        chosen = {f.name: settings[f.name] for f in fields(cls) if f.name in settings}
        return cls(**{name: tuple(value) if _is_list(value) else value for name, value in chosen.items()})


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
