"""Builds what an entry in the tables of optimizers and schedules names."""

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
    """Calls `builder` (`module:attribute`) with the arguments and every option: as given, or its default."""
    module, attribute = builder.split(":")
    defaults = {name: option.default for name, option in options.items()}
    return getattr(import_module(module), attribute)(*arguments, **settings, **(defaults | dict(given)))
