"""The Python file that an author of a new loss starts with: it trains as it is written, and its comments are true."""

from __future__ import annotations

import keyword
import re
import sys

from orchestrator.errors import KdctlError
from orchestrator.text import printable, shorten

_TEXT = '''\
"""A distillation loss of your own. A study file names it like any other method:

  method: ./{name}.py:{title}
  method: {{./{name}.py:{title}: {{temperature: [2, 4]}}}}   an option with two values: two trials
  method: {{./{name}.py:{title}: , dkd: {{alpha: 1}}}}       together with another method

`kdctl check` runs two training steps of it and says what is wrong, with the line in this file. An edit of this file,
or of a file next to it that it imports, makes new trials; those that are finished stay as they are.
"""

import torch


class {title}:
    """Kullback-Leibler divergence of the predictions at a temperature: put your own idea in its place."""

    # What it reads of the teacher: some of "logits", "pooled" and "maps". Logits or pooled features alone come from a
    # table, so that no teacher runs during training.
    needs = ("logits",)

    # Every parameter with a default is an option: a number, True or False. To train parameters of the loss itself, make
    # the class a torch.nn.Module with __init__(self, student, teacher, temperature=4.0): it gets the sizes of both
    # models (`classes`, `pooled`, and `maps`, the channels of each map).
    def __init__(self, temperature=4.0):
        if temperature <= 0:
            raise ValueError(f"temperature is {{temperature}}; expected a number above 0")
        self.temperature = temperature

    def __call__(self, student, labels, teacher, progress):
        """The loss of one batch of B images of C classes.

        student.logits   [B, C], before the softmax
        student.pooled   [B, F], the features before the last layer
        student.maps     the feature maps [B, channels, height, width] of the stem, then of each stage; convert them
                         with .float(), since convolutions may compute in bfloat16
        labels           [B], the numbers of the classes
        teacher          the same outputs for the same images, those that `needs` names; teacher.index [B] holds the
                         numbers of the images in the training set
        progress         progress.epoch, a tensor that counts from 1 to progress.epochs

        Return the distillation term, a mean over the batch, as a tensor with one number. The cross-entropy with the
        labels is added to it, times `self.ce_weight` if you set that. Or return all three: total, cross-entropy,
        distillation term.

        On a GPU the operations are recorded once and repeated at every step. So use no .item(), no `if` on the value of
        a tensor, no random numbers, and torch.where instead of an index that selects a varying number of elements.
        """
        own = torch.log_softmax(student.logits / self.temperature, dim=1)
        expected = torch.log_softmax(teacher.logits / self.temperature, dim=1)
        divergence = (expected.exp() * (expected - own)).sum(dim=1).mean()
        return self.temperature**2 * divergence
'''


def text(name: str) -> str:
    """The text of NAME.py."""
    return _TEXT.format(name=name, title=_title(name))


def method(name: str) -> str:
    """How a study file in the same folder names the loss. Raises KdctlError for a name that no module can have."""
    # The file imports torch, and a file called `torch` would import itself.
    taken = name == "torch" or name in sys.stdlib_module_names or keyword.iskeyword(_title(name))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name) or taken:
        raise KdctlError(
            f"--method {printable(repr(shorten(name)))} cannot be the name of your own Python file; expected letters, "
            "digits and _, and no name of Python's own; write --method my_loss"
        )
    return f"./{name}.py:{_title(name)}"


def _title(name: str) -> str:
    """The name of the class: MyLoss for my_loss."""
    return "".join(f"{part[:1].upper()}{part[1:]}" for part in name.split("_"))
