"""Testing a model on a split."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from orchestrator import models
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data, Images
from orchestrator.models.base import Classifier
from orchestrator.training import evaluation
from orchestrator.training.evaluation import evaluate


def noise(count: int) -> Data:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Images(pixels, torch.arange(count) % 10)
    return Data(split, None, split, DATASETS["cifar10"])


@pytest.fixture
def trained() -> Classifier:
    """A model whose batch norms have seen some images."""
    torch.manual_seed(0)
    model = models.build("resnet_32_8", 10)
    data = noise(64)
    with torch.no_grad():
        for _ in range(5):
            model(data.normalise(data.train.pixels))
    return model


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
def test_a_score_is_that_of_the_model_but_for_rounding(trained: Classifier, count: int) -> None:
    data = noise(count)
    score = evaluate(trained, data.test, data)
    with torch.no_grad():
        logits = trained.eval()(data.normalise(data.test.pixels))
    assert score.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
    assert torch.equal(score.predictions, logits.argmax(1))
    assert score.acc == 100 * (logits.argmax(1) == data.test.labels).sum().item() / count
    assert score.top5 == 100 * (logits.topk(5).indices == data.test.labels[:, None]).any(1).sum().item() / count


def test_the_model_itself_is_not_changed(trained: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    modules = [type(module) for module in trained.modules()]
    data = noise(10)
    evaluate(trained, data.test, data)
    assert [type(module) for module in trained.modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_an_error_of_the_check_ends_it_between_batches(trained: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.EVAL_BATCHES, "cpu", 10)
    checked = 0

    def check() -> None:
        nonlocal checked
        checked += 1
        if checked == 3:
            raise InterruptedError

    data = noise(50)
    with pytest.raises(InterruptedError):
        evaluate(trained, data.test, data, check)
    assert checked == 3
