"""Makes a user's code known by its name, as what kdctl brings itself is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from orchestrator import losses, models
from orchestrator.models.family import Widths
from orchestrator.own_code.signature import LossSignature, check_parameter, read_loss
from orchestrator.own_code.source import CodeKind, OwnCode

if TYPE_CHECKING:
    from orchestrator.losses.base import Loss
    from orchestrator.models.base import Classifier


def register(codes: Iterable[OwnCode]) -> None:
    """Makes losses and models known under their names, the latest version of each; a dataset is only checked.

    Raises ValueError where kdctl could not call them, see `signature`.
    """
    for code in codes:
        if code.kind is not CodeKind.LOSS:
            check_parameter(code)
        if code.kind is CodeKind.MODEL:
            widths = lru_cache(partial(_measure, code))
            models.OWN[code.name] = models.describe_own(code.name, partial(_build_model, code), widths)
        elif code.kind is CodeKind.LOSS:
            losses.OWN[code.name] = _describe_loss(code, read_loss(code))


def _describe_loss(code: OwnCode, signature: LossSignature) -> losses.Method:
    return losses.Method(
        partial(_build_loss, code, signature),
        f"the loss {code.attribute} in {code.file}",
        signature.options,
        lambda options: signature.needs,
        has_parameters=signature.takes_shapes,
        formula="",
        source=code.file,
    )


# These import torch, which only training and checking need.


def _build_loss(code: OwnCode, signature: LossSignature, *shapes: Any, **options: Any) -> Loss:
    from orchestrator.own_code.losses import build_loss

    return build_loss(code, signature, shapes, **options)


def _build_model(code: OwnCode, num_classes: int) -> Classifier:
    from orchestrator.own_code.models import build_model

    return build_model(code, num_classes)


def _measure(code: OwnCode) -> Widths:
    return _build_model(code, 2).widths
