"""Makes a user's code known by its name, as what kdctl brings itself is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import losses
from orchestrator.own_code.signature import LossSignature, read_loss
from orchestrator.own_code.source import OwnCode

if TYPE_CHECKING:
    from orchestrator.losses.base import Loss


def register(codes: Iterable[OwnCode]) -> None:
    """Makes losses known under their names, the latest version of each. Raises ValueError, see `read_loss`."""
    for code in codes:
        signature = read_loss(code)
        losses.OWN[code.name] = losses.Method(
            partial(_build, code, signature),
            f"the loss {code.attribute} in {code.file}",
            signature.options,
            lambda options, needs=signature.needs: needs,  # type: ignore[misc]
            has_parameters=signature.takes_shapes,
            formula="",
            source=code.file,
        )


def _build(code: OwnCode, signature: LossSignature, *shapes: Any, **options: Any) -> Loss:
    from orchestrator.own_code.losses import build_loss  # which imports torch

    return build_loss(code, signature, shapes, **options)
