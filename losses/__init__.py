"""The methods that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.losses.base import Loss, Shapes


@dataclass(frozen=True)
class Option:
    """An option of an entry: one of `choices`, or a number from `least` (or above it, if `exclusive`) to `most`.

    It is true or false where its default is, and an integer where its default is one.
    """

    default: float | str | bool
    doc: str
    choices: tuple[str, ...] = ()
    least: float = 0.0
    most: float = 1e9
    exclusive: bool = False


Options = Mapping[str, float | str | bool]


class Widths(Protocol):
    """The channels of a model's maps and of its pooled features."""

    @property
    def maps(self) -> tuple[int, ...]:
        """The stem's, then each stage's."""

    @property
    def pooled(self) -> int:
        """Of the features before the last linear layer."""


def _pooled_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    if options["match"] != "pooled":
        return ""
    if options["standardize"]:
        return "standardize acts on logits, and match: pooled compares pooled features instead; remove one of the two"
    if student.pooled == teacher.pooled:
        return ""
    return (
        f"match: pooled compares pooled features one by one, and the student has {student.pooled} of them, the teacher "
        f"{teacher.pooled}; use match: logits, or a teacher with {student.pooled}"
    )


def _stage_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    stages = min(len(student.maps), len(teacher.maps)) - 1  # without the stem
    if int(options["stage"]) <= stages:
        return ""
    return f"one of them has no stage {options['stage']}; both have the stages 1 to {stages}; use one of these"


def _stage_count_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    stages, taught = len(student.maps) - 1, len(teacher.maps) - 1  # without the stem
    if stages == taught:
        return ""
    return (
        f"the method compares stage with stage, and the student has {stages} stages, the teacher {taught}; use a "
        f"teacher with {stages}"
    )


def _width_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    if student.maps == teacher.maps:
        return ""
    own, taught = (", ".join(map(str, model.maps)) for model in (student, teacher))
    return (
        f"the method compares maps channel by channel, and the student's maps have {own} channels, the teacher's "
        f"{taught}; use a teacher with the same numbers of channels"
    )


def _needs_maps(options: Options) -> tuple[str, ...]:
    return ("maps",)


def _needs_pooled(options: Options) -> tuple[str, ...]:
    return ("pooled",)


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    `needs` returns which outputs of the teacher it uses with given options: some of `logits`, `pooled` and `maps`, or
    none if it has no teacher. `builder` is `module:attribute` or a function; it is called with the options as keywords.
    A loss that `has_parameters` is an `nn.Module`, and its builder also gets the `Shapes` of student and teacher; one
    that also `has_memory` of the training images gets their labels [N] (int64) as well. `mismatch` states why a student
    of one width cannot learn from a teacher of another, and how to fix it; "" where it can.

    The docs print the rest: the `formula` of the loss in plain text, with the names of the options; the `source`, like
    `arXiv 1503.02531`; and where the published code differs from the paper, which of the two this is (`variant`).
    """

    builder: str | Callable[..., Loss]
    doc: str
    options: Mapping[str, Option]
    needs: Callable[[Options], tuple[str, ...]]
    has_parameters: bool = False
    has_memory: bool = False
    mismatch: Callable[[Options, Widths, Widths], str] = lambda options, student, teacher: ""
    formula: str = field(kw_only=True)
    source: str = field(kw_only=True)
    variant: str = field(default="", kw_only=True)

    @property
    def has_teacher(self) -> bool:
        """Whether the method needs a teacher."""
        return bool(self.needs(self.defaults()))

    def defaults(self) -> dict[str, float | str | bool]:
        """Every option at its default."""
        return {name: option.default for name, option in self.options.items()}


_CE = "ce_weight"  # the option that each method with a weight for its cross-entropy has
_CE_WEIGHT = Option(1.0, "weight of the cross-entropy")
_TEMPERATURE = Option(4.0, "T: the logits of both models are divided by it", exclusive=True)
_STANDARDIZE = Option(
    False,
    "standardise the logits of both models for each image, (z - mean(z)) / (1e-7 + std(z)) over the classes, in all "
    "terms but ce_weight * CE(z, y) (arXiv 2403.01427)",
)


_SOFT_TARGET = "ce_weight * CE(z, y) + weight * T^2 * KL(softmax(v / T) || softmax(z / T))"
_WARMUP = Option(20, "epochs in which the weight grows linearly to its full value", least=1, most=100_000)


def _needs_logits(options: Options) -> tuple[str, ...]:
    return ("logits",)


METHODS: Mapping[str, Method] = {
    "base": Method(
        "orchestrator.losses.logits:Base",
        "cross-entropy alone, no teacher",
        {},
        lambda options: (),
        formula="CE(z, y)",
        source="the usual loss of classification",
    ),
    "logit": Method(
        "orchestrator.losses.logits:Logit",
        "cross-entropy + mean squared difference to the teacher's logits (arXiv 1312.6184)",
        {
            "ce_weight": Option(1.0, "weight of the cross-entropy; 0 is pure regression on the teacher"),
            "match": Option(
                "logits", "which outputs of student and teacher are compared", choices=("logits", "pooled")
            ),
            "standardize": _STANDARDIZE,
        },
        lambda options: (str(options["match"]),),
        mismatch=_pooled_mismatch,
        formula="ce_weight * CE(z, y) + mean over images and classes of (z - v)^2",
        source="arXiv 1312.6184",
        variant="The paper has no cross-entropy term; ce_weight: 0 gives its loss.",
    ),
    "st": Method(
        "orchestrator.losses.logits:SoftTarget",
        "cross-entropy + T²·KL(teacher ‖ student) at temperature T (arXiv 1503.02531)",
        {
            "temperature": _TEMPERATURE,
            "ce_weight": _CE_WEIGHT,
            "weight": Option(1.0, "weight of the divergence"),
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula=f"{_SOFT_TARGET}\nT = temperature",
        source="arXiv 1503.02531",
    ),
    "kd": Method(
        "orchestrator.losses.logits:SoftTarget",
        "0.1 · cross-entropy + 0.9 · T²·KL(teacher ‖ student), as the field weighs the terms of st (arXiv 1503.02531)",
        {
            "ce_weight": Option(0.1, "weight of the cross-entropy"),
            "weight": Option(0.9, "weight of the divergence"),
            "temperature": _TEMPERATURE,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula=f"{_SOFT_TARGET}\nT = temperature",
        source="arXiv 1503.02531; the weights are those of the field's code for CIFAR-100",
        variant="The paper gives no weights. The authors of standardize use weight 9 and temperature 2 with it.",
    ),
    "dkd": Method(
        "orchestrator.losses.decoupled:DKD",
        "decoupled KD: a divergence of the label's class against the rest, and one among the rest (arXiv 2203.08679)",
        {
            "alpha": Option(1.0, "weight of the divergence of the label's class against the rest"),
            "beta": Option(8.0, "weight of the divergence among the other classes; published values are 2, 6 and 8"),
            "temperature": _TEMPERATURE,
            "warmup": _WARMUP,
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + w * T^2 * (alpha * KL(b(v) || b(z)) + beta * KL(n(v) || n(z)))\n"
        "b(z) = (p, 1 - p) with p = softmax(z / T)[y],  n(z) = softmax of z / T over the classes but y\n"
        "w = min(epoch / warmup, 1),  T = temperature",
        source="arXiv 2203.08679",
        variant="The published code has the warm-up, the paper's formula does not; kdctl follows the code. To leave "
        "the label out of n, the code subtracts 1000 from its logit; kdctl leaves it out exactly.",
    ),
    "dist": Method(
        "orchestrator.losses.predictions:DIST",
        "correlation of the predictions of student and teacher, of each image over the classes and of each class over "
        "the batch (arXiv 2205.10536)",
        {
            "weight": Option(2.0, "weight of both terms"),
            "beta": Option(1.0, "weight of the term over images"),
            "gamma": Option(1.0, "weight of the term over classes"),
            "temperature": _TEMPERATURE,
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + weight * T^2 * (beta * (1 - mean r of images) + gamma * (1 - mean r of "
        "classes))\nr = a.b / (|a| |b| + 1e-8), a and b the centred softmax(z / T) and softmax(v / T)\n"
        "T = temperature",
        source="arXiv 2205.10536",
        variant="As in the published code, both terms are multiplied by T^2, and 1e-8 is added to the product of the "
        "norms.",
    ),
    "nkd": Method(
        "orchestrator.losses.decoupled:NKD",
        "normalised KD: a soft cross-entropy of the label's class, and one among the others (arXiv 2303.13005)",
        {
            "gamma": Option(1.5, "weight of the other classes"),
            "temperature": Option(1.0, "T: the logits of the other classes are divided by it", exclusive=True),
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) - mean over images of softmax(v)[y] * log softmax(z)[y]\n"
        "  - gamma * T^2 * mean over images of the sum of n(v) * log n(z)\n"
        "n(z) = softmax of z / T over the classes but y,  T = temperature",
        source="arXiv 2303.13005",
        variant="The defaults are those of the published loss. Its example for CIFAR-100 has temperature 3 and gamma "
        "3.5.",
    ),
    "ttm": Method(
        "orchestrator.losses.soft_labels:TTM",
        "transformed teacher matching: KL to a power of the teacher's probabilities (arXiv 2402.11148)",
        {
            "weight": Option(
                45.0, "weight of the divergence; the published value for teacher vgg_13 and student vgg_8"
            ),
            "gamma": Option(0.1, "the power", exclusive=True),
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + weight * KL(q || softmax(z))\n"
        "q = softmax(v)^gamma, divided by its sum over the classes",
        source="arXiv 2402.11148",
    ),
    "wttm": Method(
        "orchestrator.losses.soft_labels:WTTM",
        "weighted TTM: the less sure the teacher is of an image, the more that image counts (arXiv 2402.11148)",
        {
            "weight": Option(45.0, "weight of the divergence"),
            "gamma": Option(0.1, "the power", exclusive=True),
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + weight * mean over images of U * KL(q || softmax(z))\n"
        "U = sum over the classes of softmax(v)^gamma,  q = softmax(v)^gamma / U",
        source="arXiv 2402.11148",
    ),
    "wsld": Method(
        "orchestrator.losses.soft_labels:WSLD",
        "weighted soft labels: the better the student fits an image, the less its soft labels count (arXiv 2102.00650)",
        {
            "alpha": Option(2.25, "weight of the soft labels"),
            "temperature": _TEMPERATURE,
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) - alpha * T^2 * mean over images of w * <softmax(v / T), log softmax(z / T)>\n"
        "w = 1 - exp(-CE(z, y) / (CE(v, y) + 1e-7)) of the image alone, without gradient,  T = temperature",
        source="arXiv 2102.00650",
    ),
    "rld": Method(
        "orchestrator.losses.decoupled:RLD",
        "refined logits: as dkd, but the label's class of the student is compared with the top class of the teacher, "
        "and classes that the teacher ranks above the label's are left out (arXiv 2408.07703)",
        {
            "alpha": Option(1.0, "weight of the divergence of one class against the rest"),
            "beta": Option(8.0, "weight of the divergence among the classes that are left"),
            "alpha_temperature": Option(1.0, "A: temperature of one class against the rest", exclusive=True),
            "temperature": Option(4.0, "T: temperature among the classes that are left", exclusive=True),
            "warmup": _WARMUP,
            "ce_weight": _CE_WEIGHT,
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + w * alpha * A^2 * KL((q, 1 - q) || (p, 1 - p))\n"
        "  + w * beta * T^2 * KL(n(v) || n(z))\n"
        "q = largest of softmax(v / A),  p = softmax(z / A)[y]\n"
        "n(z) = softmax of z / T over the classes c with v[c] < v[y]\n"
        "w = min(epoch / warmup, 1),  A = alpha_temperature,  T = temperature",
        source="arXiv 2408.07703",
    ),
    "ctkd": Method(
        "orchestrator.losses.ctkd:CTKD",
        "KD at a temperature that is learned against the student (arXiv 2211.16231)",
        {
            "ce_weight": Option(0.1, "weight of the cross-entropy"),
            "weight": Option(0.9, "weight of the divergence"),
            "lowest": Option(1.0, "the lowest temperature", exclusive=True),
            "span": Option(20.0, "how far the temperature can rise above the lowest"),
            "warmup": Option(
                10, "epochs until the gradient of the temperature is fully reversed", least=1, most=100_000
            ),
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        has_parameters=True,
        formula=f"{_SOFT_TARGET}\n"
        "T = lowest + span * sigmoid(t);  t is trained and starts at 1\n"
        "its gradient is multiplied by (cos(pi * min(epoch / warmup, 1)) - 1) / 2",
        source="arXiv 2211.16231",
        variant="kdctl has the paper's global temperature, and not its temperature for each image.",
    ),
    "mlkd": Method(
        "orchestrator.losses.predictions:MLKD",
        "multi-level logits: KL at five temperatures, and squared differences of the products of predictions, class "
        "with class and image with image (CVPR 2023, Jin et al.)",
        {
            "ce_weight": Option(0.1, "weight of the cross-entropy"),
            "weight": Option(0.9, "weight of the sum"),
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + weight * sum over T = 2, 3, 4, 5, 6 of (T^2 * KL(Q || P) + |P'P - Q'Q|^2 / C + "
        "|PP' - QQ'|^2 / B)\nP = softmax(z / T) and Q = softmax(v / T), both B x C;  P' is P transposed",
        source="Jin et al., Multi-Level Logit Distillation, CVPR 2023",
        variant="The published code trains on a weak and a strong view of each image; kdctl has one view. The code's "
        "masks of images and classes are applied to means, and so only scale them by about a half; kdctl leaves the "
        "masks out. As in the code, the products are sums over the batch, so the loss depends on the batch size.",
    ),
    "fitnet": Method(
        "orchestrator.losses.fitnet:FitNet",
        "cross-entropy + squared difference of a stage's feature maps, through a trained projection (arXiv 1412.6550)",
        {
            "weight": Option(100.0, "weight of the difference"),
            "stage": Option(2, "the stage whose maps are compared, counted from 1; 0 is the stem", most=100),
        },
        lambda options: ("maps",),
        has_parameters=True,
        mismatch=_stage_mismatch,
        formula="CE(z, y) + weight * mean of (r(student's map) - teacher's map)^2\n"
        "r = ReLU(BatchNorm(1x1 convolution)), trained; both maps are those of the stage",
        source="arXiv 1412.6550",
        variant="The paper trains the student on the maps first, and then on the labels. The field's code trains on "
        "both at once, and so does kdctl. Where the maps differ in size, the field's code has a strided convolution.",
    ),
    "rkd": Method(
        "orchestrator.losses.relations:RelationalKD",
        "cross-entropy + Huber loss of the distances and angles between a batch's pooled features (arXiv 1904.05068)",
        {
            "weight": Option(1.0, "weight of both terms"),
            "distance_weight": Option(25.0, "weight of the distances"),
            "angle_weight": Option(50.0, "weight of the angles"),
        },
        _needs_pooled,
        formula="CE(z, y) + weight * (distance_weight * D + angle_weight * A)\n"
        "D = mean over pairs (i, j) of huber(d_s(i, j) - d_t(i, j)), A = mean over triples of huber(c_s - c_t)\n"
        "d(i, j) = distance of images i and j over its mean in the batch; c(i, j, k) = cosine of the angle j-i-k\n"
        "s: of the student's pooled features, t: of the teacher's; huber(x) = x^2 / 2, or |x| - 1/2 above 1",
        source="arXiv 1904.05068",
        variant="Pairs and triples that contain an image twice count as 0 in the means, as in the field's code.",
    ),
    "pkt": Method(
        "orchestrator.losses.relations:ProbabilisticKT",
        "cross-entropy + divergence of the similarities between a batch's pooled features (arXiv 1803.10837)",
        {"weight": Option(30000.0, "weight of the divergence")},
        _needs_pooled,
        formula="CE(z, y) + weight * mean over pairs (i, j) of q_ij log(q_ij / p_ij)\n"
        "p_ij = (1 + cos(i, j)) / sum over j of (1 + cos(i, j)), with cosines of the student's pooled features\n"
        "q_ij: the same, with the teacher's",
        source="arXiv 1803.10837",
        variant="kdctl takes the mean over all pairs, as the published code does; the paper takes the sum.",
    ),
    "cc": Method(
        "orchestrator.losses.relations:CorrelationCongruence",
        "cross-entropy + correlation of the differences of embedded pooled features, between neighbouring images of a "
        "batch (arXiv 1904.01802)",
        {"weight": Option(0.02, "weight of the correlation")},
        _needs_pooled,
        has_parameters=True,
        formula="CE(z, y) + weight * mean over i of sum over 128 entries of |delta_i| * |delta_(i+1)|\n"
        "delta_i = E_s(student's pooled features) - E_t(teacher's) for image i of the batch\n"
        "E_s, E_t: trained linear layers with 128 outputs",
        source="arXiv 1904.01802",
        variant="kdctl follows the field's code, which is derived from the authors'. The paper instead compares the "
        "kernel matrices of all images of a batch, and draws batches with several images of a class.",
    ),
    "crd": Method(
        "orchestrator.losses.crd:ContrastiveRepresentation",
        "cross-entropy + contrast of an image's pooled features with those of images of other classes "
        "(arXiv 1910.10699)",
        {
            "weight": Option(0.8, "weight of the contrast"),
            "negatives": Option(
                16384, "K: how many images of other classes each image is contrasted with", least=1, most=1e6
            ),
            "temperature": Option(0.07, "T: the cosines are divided by it", least=0.02),
            "memory_momentum": Option(0.5, "share of an image's row that is kept each time the image is seen", most=1),
        },
        _needs_pooled,
        has_parameters=True,
        has_memory=True,
        formula="CE(z, y) + weight * (contrast(student's, teacher's memory) + contrast(teacher's, student's memory))\n"
        "contrast = mean over images of (-log(P(own)/(P(own) + c)) - sum over K rows of log(c/(P(row) + c)))\n"
        "P(row) = exp(<embedding, row> / T) / Z; c = K / number of training images; K = negatives; T = temperature\n"
        "embedding = 128 linear outputs of the pooled features, divided by their norm\n"
        "Z = mean of exp(<embedding, row> / T) in the first batch * number of training images\n"
        "after a step, own row = normalised (memory_momentum * own row + (1 - memory_momentum) * embedding)",
        source="arXiv 1910.10699",
        variant="kdctl follows the published code, but draws the negatives of an image with replacement, which leaves "
        "the expected loss unchanged.",
    ),
    "simkd": Method(
        "orchestrator.losses.simkd:SimKD",
        "cross-entropy + squared difference of the pooled features, the student's through a trained projector "
        "(arXiv 2203.14001)",
        {"weight": Option(1.0, "weight of the difference")},
        _needs_pooled,
        has_parameters=True,
        formula="CE(z, y) + weight * mean of (P(student's pooled features) - teacher's pooled features)^2\n"
        "P = three times ReLU(BatchNorm(linear layer)), trained: to half the teacher's width, half, and all of it",
        source="arXiv 2203.14001",
        variant="kdctl has the feature term alone. The paper compares the maps before pooling, leaves out the "
        "cross-entropy, and then classifies with the projector and the teacher's last layer; here the student keeps a "
        "last layer of its own, and is as large as without a teacher.",
    ),
    "at": Method(
        "orchestrator.losses.maps:AttentionTransfer",
        "cross-entropy + squared difference of every stage's attention maps (arXiv 1612.03928)",
        {"weight": Option(1000.0, "weight of the difference")},
        _needs_maps,
        formula="CE(z, y) + weight * sum over stages of mean of (a(student's map) - a(teacher's map))^2\n"
        "a = mean over channels of the squares, divided by its norm over all places",
        source="arXiv 1612.03928",
        variant="kdctl takes the mean over places, as the published code does; the paper takes the norm of the "
        "difference.",
    ),
    "sp": Method(
        "orchestrator.losses.maps:SimilarityPreserving",
        "cross-entropy + squared difference of the similarities between the images of a batch, in their last maps "
        "(arXiv 1907.09682)",
        {"weight": Option(3000.0, "weight of the difference")},
        _needs_maps,
        formula="CE(z, y) + weight * mean over pairs (i, j) of (S_ij - T_ij)^2\n"
        "S_ij = <map of i, map of j> / norm of row i, with the student's last maps;  T_ij: with the teacher's",
        source="arXiv 1907.09682",
        variant="kdctl compares the last stage alone, as the field's code does; the paper allows several.",
    ),
    "nst": Method(
        "orchestrator.losses.maps:NeuronSelectivity",
        "cross-entropy + discrepancy (MMD) of every stage's channels under a polynomial kernel (arXiv 1707.01219)",
        {"weight": Option(50.0, "weight of the discrepancy")},
        _needs_maps,
        formula="CE(z, y) + weight * sum over stages of (mean of k(s, s') + mean of k(t, t') - 2 * mean of k(s, t))\n"
        "k(x, y) = <x, y>^2; s, t: the student's and the teacher's channels, each divided by its norm",
        source="arXiv 1707.01219",
        variant="kdctl compares all stages, as the field's code does.",
    ),
    "vid": Method(
        "orchestrator.losses.maps:VariationalInformation",
        "cross-entropy + negative log-likelihood of the teacher's maps, given the student's (CVPR 2019)",
        {"weight": Option(1.0, "weight of the negative log-likelihood")},
        _needs_maps,
        has_parameters=True,
        formula="CE(z, y) + weight * sum over stages of mean of ((r(student's) - teacher's map)^2 / v + log v) / 2\n"
        "r = three 1x1 convolutions of the student's map with ReLU between them\n"
        "v = 1e-5 + log(1 + exp(s)), with a trained s for each of the teacher's channels; v starts at 5",
        source="CVPR 2019 (Ahn et al., Variational Information Distillation for Knowledge Transfer)",
        variant="kdctl compares all stages, each with weight 1, as the field's code does.",
    ),
    "fsp": Method(
        "orchestrator.losses.maps:SolutionFlow",
        "cross-entropy + squared difference of the inner products between neighbouring maps (CVPR 2017)",
        {"weight": Option(50.0, "weight of the difference")},
        _needs_maps,
        mismatch=_width_mismatch,
        formula="CE(z, y) + weight * sum over neighbouring maps of mean of (G(student's) - G(teacher's))^2\n"
        "G_cd = mean over places of (channel c of a map) * (channel d of the map before it); the first pair is "
        "the stem and stage 1",
        source="CVPR 2017 (Yim et al., A Gift from Knowledge Distillation)",
        variant="The paper and the field's code first train the student on this term alone, and then on the labels; "
        "kdctl trains on both at once.",
    ),
    "reviewkd": Method(
        "orchestrator.losses.reviewkd:ReviewKD",
        "cross-entropy + squared difference of all maps, each fused with those above it (arXiv 2104.09044)",
        {
            "weight": Option(1.0, "weight of the difference"),
            "warmup": _WARMUP,
        },
        lambda options: ("maps", "pooled"),
        has_parameters=True,
        mismatch=_stage_count_mismatch,
        formula="CE(z, y) + weight * min(epoch / warmup, 1) * sum over levels of HCL(student's, teacher's)\n"
        "levels: the stages' maps, and the pooled features as a map of one place\n"
        "student's = ABF(its map, fused map of the level above): trained convolutions, trained share of each map\n"
        "HCL = weighted mean of the squared differences of the maps, and of both pooled to 4x4, 2x2 and 1x1 places;\n"
        "each size has half the weight of the one before",
        source="arXiv 2104.09044",
        variant="The published code takes the teacher's maps before their last ReLU; kdctl takes them after it.",
    ),
}


OWN: dict[str, Method] = {}  # losses in a user's files, by their names like `my_loss:MyLoss`; see `own_code`
JOIN = "+"  # between the names of methods that are combined, which stand in alphabetical order


def find(name: str) -> Method | None:
    """The facts of a method, of a user's own, or of several that are joined by `+`; None for an unknown name.

    The options of a combination are those of its parts, with names like `dkd.alpha`.
    """
    if JOIN not in name:
        return METHODS.get(name) or OWN.get(name)
    names = name.split(JOIN)
    parts = {part: facts for part in names if (facts := find(part))}
    return _combine(parts) if len(parts) == len(names) else None


def get(name: str) -> Method:
    """As `find`, but raises ValueError for an unknown name."""
    facts = find(name)
    if facts is None:
        raise ValueError(f"unknown method {name!r}; methods are {', '.join(METHODS)}")
    return facts


def find_builtin_options(method: str) -> Mapping[str, Option]:
    """The options of a method, or of each that is combined, by their names in a config.

    Those of a user's own loss are left out: what is known of them depends on which files were read.
    """
    if JOIN not in method:
        return METHODS[method].options if method in METHODS else {}
    parts = [part for part in method.split(JOIN) if part in METHODS]
    return {f"{part}.{name}": option for part in parts for name, option in METHODS[part].options.items()}


def find_table_output(needs: tuple[str, ...]) -> str | None:
    """The output that a table of teacher outputs serves, `logits` or `pooled`; None where the teacher runs live.

    A table holds one kind of output, and maps would be too large for it.
    """
    return needs[0] if len(needs) == 1 and needs[0] != "maps" else None


def _combine(parts: Mapping[str, Method]) -> Method:
    def needs(options: Options) -> tuple[str, ...]:
        found = (output for name, part in parts.items() for output in part.needs(_options_of(name, options)))
        return tuple(dict.fromkeys(found))

    def mismatch(options: Options, student: Widths, teacher: Widths) -> str:
        found = (part.mismatch(_options_of(name, options), student, teacher) for name, part in parts.items())
        return next(filter(None, found), "")

    def builder(
        student: Shapes | None = None,
        teacher: Shapes | None = None,
        labels: Tensor | None = None,
        **options: float | str | bool,
    ) -> Loss:
        shapes = (student, teacher) if student and teacher else None
        return _build_combined(parts, shapes, labels, options)

    return Method(
        builder,
        " and ".join(parts),
        {f"{name}.{key}": option for name, part in parts.items() for key, option in part.options.items()},
        needs,
        has_parameters=any(part.has_parameters for part in parts.values()),
        has_memory=any(part.has_memory for part in parts.values()),
        mismatch=mismatch,
        formula=" + ".join(parts),
        source="; ".join(part.source for part in parts.values()),
    )


def _options_of(name: str, options: Options) -> dict[str, float | str | bool]:
    """The options of one part of a combination, without its name."""
    return {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}


def find_conflict(options: Options) -> str:
    """Why the methods of a combination cannot train together, and how to fix it; "" where they can.

    The cross-entropy counts once, so two methods must agree on its weight.
    """
    weights = {key.rpartition(".")[0]: value for key, value in options.items() if key.endswith(f".{_CE}")}
    if len(set(weights.values())) <= 1:
        return ""
    listed = ", ".join(f"{name} {value:g}" for name, value in weights.items())
    return (
        f"the cross-entropy counts once, and the methods give it different weights ({listed}); give each the same {_CE}"
    )


def _build_combined(
    parts: Mapping[str, Method], shapes: tuple[Shapes, Shapes] | None, labels: Tensor | None, options: Options
) -> Loss:
    from orchestrator.losses.combined import Combined  # which imports torch

    if conflict := find_conflict(options):
        raise ValueError(conflict)
    losses = {name: _call(part, shapes, labels, _options_of(name, options)) for name, part in parts.items()}
    weights = [float(value) for key, value in options.items() if key.endswith(f".{_CE}")]
    return Combined(losses, (*weights, 1.0)[0])


def build(
    method: str,
    shapes: tuple[Shapes, Shapes] | None = None,
    labels: Tensor | None = None,
    /,
    **options: float | str | bool,
) -> Loss:
    """The loss of a method; options that are not given are at their defaults.

    `shapes` are those of student and teacher, which a method with parameters needs; these are drawn from torch's global
    generator. `labels` are those of the training images, on the CPU, which a method with a memory needs. Raises
    ValueError for an unknown method or option, and for shapes that the method cannot compare.
    """
    facts = get(method)
    unknown = sorted(set(options) - set(facts.options))
    if unknown:
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; it has {', '.join(facts.options)}")
    if facts.has_parameters and shapes is None:
        raise ValueError(f"method {method!r} has parameters; build it with the shapes of student and teacher")
    if facts.has_memory and labels is None:
        raise ValueError(f"method {method!r} has a memory; build it with the labels of the training images")
    return _call(facts, shapes, labels, {**facts.defaults(), **options})


def _call(facts: Method, shapes: tuple[Shapes, Shapes] | None, labels: Tensor | None, options: Options) -> Loss:
    if isinstance(facts.builder, str):
        module, attribute = facts.builder.split(":")
        builder: Callable[..., Loss] = getattr(import_module(module), attribute)
    else:
        builder = facts.builder
    arguments = [*(shapes if facts.has_parameters and shapes else ()), *([labels] if facts.has_memory else ())]
    return builder(*arguments, **options)
