"""How an entry of the tables of optimizers and schedules becomes what it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from orchestrator.losses import Option


def build_entry(
    builder: str,
    options: Mapping[str, Option],
    given: Iterable[tuple[str, float | str | bool]],
    *arguments: Any,
    **settings: Any,
) -> Any:
    """What `builder` (`module:attribute`) returns for the arguments, with every option: as given, or its default."""
    module, attribute = builder.split(":")
    defaults = {name: option.default for name, option in options.items()}
    return getattr(import_module(module), attribute)(*arguments, **settings, **(defaults | dict(given)))
