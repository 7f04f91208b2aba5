"""The methods that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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
        return "standardize is for logits, and match: pooled compares other outputs; remove one of the two"
    if student.pooled == teacher.pooled:
        return ""
    return (
        f"match: pooled compares their pooled features one by one, and there are {student.pooled} of the student's "
        f"and {teacher.pooled} of the teacher's; use match: logits, or a teacher with {student.pooled}"
    )


def _stage_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    stages = min(len(student.maps), len(teacher.maps)) - 1  # without the stem
    if int(options["stage"]) <= stages:
        return ""
    return f"one of them has no stage {options['stage']}; they share {stages} stages, so use stage: 1 to {stages}"


def _stage_count_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    stages, taught = len(student.maps) - 1, len(teacher.maps) - 1  # without the stem
    if stages == taught:
        return ""
    return (
        f"it compares stage with stage, and the student has {stages}, the teacher {taught}; use a teacher with {stages}"
    )


def _width_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    if student.maps == teacher.maps:
        return ""
    own, taught = (", ".join(map(str, model.maps)) for model in (student, teacher))
    return (
        f"it compares maps channel by channel, without a projection, and the student's maps have {own} channels, the "
        f"teacher's {taught}; use a teacher with as many"
    )


def _needs_maps(options: Options) -> tuple[str, ...]:
    return ("maps",)


def _needs_pooled(options: Options) -> tuple[str, ...]:
    return ("pooled",)


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    `needs` returns which outputs of the teacher it uses with given options: some of `logits`, `pooled` and `maps`, or
    none if it has no teacher. `builder` is `module:attribute`, called with the options as keywords. A loss that
    `has_parameters` is an `nn.Module`, and its builder also gets the `Shapes` of student and teacher. `mismatch`
    states why a student of one width cannot learn from a teacher of another, and how to fix it; "" where it can.

    The docs print the rest: the `formula` of the loss in plain text, with the names of the options; the `source`, like
    `arXiv 1503.02531`; and where the published code differs from the paper, which of the two this is (`variant`).
    """

    builder: str
    doc: str
    options: Mapping[str, Option]
    needs: Callable[[Options], tuple[str, ...]]
    has_parameters: bool = False
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


_CE_WEIGHT = Option(1.0, "weight of the cross-entropy")
_TEMPERATURE = Option(4.0, "T: what both sets of logits are divided by", exclusive=True)
_STANDARDIZE = Option(
    False,
    "compare standardised logits, (z - mean(z)) / (1e-7 + std(z)) over the classes of each image, of both models; the "
    "cross-entropy is that of the logits themselves (arXiv 2403.01427)",
)


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
            "match": Option("logits", "what is compared with the teacher's", choices=("logits", "pooled")),
            "standardize": _STANDARDIZE,
        },
        lambda options: (str(options["match"]),),
        mismatch=_pooled_mismatch,
        formula="ce_weight * CE(z, y) + mean over images and classes of (z - v)^2",
        source="arXiv 1312.6184",
        variant="The paper has no cross-entropy, which is ce_weight: 0.",
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
        formula="ce_weight * CE(z, y) + weight * T^2 * KL(softmax(v / T) || softmax(z / T))\nT = temperature",
        source="arXiv 1503.02531",
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
        "r = ReLU(BatchNorm(1x1 convolution)), of the stage's maps",
        source="arXiv 1412.6550",
        variant="The paper trains the student on the hint first, and then on the labels. The field's code trains on "
        "both at once, and so does kdctl.",
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
        "d(i, j) = distance of images i and j over its mean in the batch; c(i, j, k) = cosine of the angle at image i\n"
        "s: of the student's pooled features, t: of the teacher's; huber(x) = x^2 / 2, or |x| - 1/2 above 1",
        source="arXiv 1904.05068",
        variant="Pairs and triples that have an image twice count with 0 in the means, as in the field's code.",
    ),
    "pkt": Method(
        "orchestrator.losses.relations:ProbabilisticKT",
        "cross-entropy + divergence of the similarities between a batch's pooled features (arXiv 1803.10837)",
        {"weight": Option(30000.0, "weight of the divergence")},
        _needs_pooled,
        formula="CE(z, y) + weight * mean over pairs (i, j) of q_ij log(q_ij / p_ij)\n"
        "p_ij = (1 + cos(i, j)) / sum over j of (1 + cos(i, j)), of the student's pooled features; q: of the teacher's",
        source="arXiv 1803.10837",
        variant="A mean over all pairs, as in the published code; the paper has a sum.",
    ),
    "cc": Method(
        "orchestrator.losses.relations:CorrelationCongruence",
        "cross-entropy + correlation of neighbouring differences of embedded pooled features (arXiv 1904.01802)",
        {"weight": Option(0.02, "weight of the correlation")},
        _needs_pooled,
        has_parameters=True,
        formula="CE(z, y) + weight * mean over i of sum over 128 entries of |delta_i| * |delta_(i+1)|\n"
        "delta_i = E_s(student's pooled features) - E_t(teacher's), of image i of the batch; E: linear, both trained",
        source="arXiv 1904.01802",
        variant="As in the field's code, which goes back to that of the authors. The paper compares the matrices of a "
        "kernel between all images of a batch, and draws batches with several images of a class.",
    ),
    "at": Method(
        "orchestrator.losses.maps:AttentionTransfer",
        "cross-entropy + squared difference of every stage's attention maps (arXiv 1612.03928)",
        {"weight": Option(1000.0, "weight of the difference")},
        _needs_maps,
        formula="CE(z, y) + weight * sum over stages of mean of (a(student's map) - a(teacher's map))^2\n"
        "a = mean over channels of the squares, divided by its norm over all places",
        source="arXiv 1612.03928",
        variant="A mean over places, as in the published code; the paper has the norm of the difference.",
    ),
    "sp": Method(
        "orchestrator.losses.maps:SimilarityPreserving",
        "cross-entropy + squared difference of the similarities between a batch's last maps (arXiv 1907.09682)",
        {"weight": Option(3000.0, "weight of the difference")},
        _needs_maps,
        formula="CE(z, y) + weight * mean over pairs (i, j) of (S_ij - T_ij)^2\n"
        "S_ij = <i, j> / norm of row i, of the student's last maps; T: of the teacher's",
        source="arXiv 1907.09682",
        variant="The last stage alone, as in the field's code; the paper allows several.",
    ),
    "nst": Method(
        "orchestrator.losses.maps:NeuronSelectivity",
        "cross-entropy + discrepancy (MMD) of every stage's channels under a polynomial kernel (arXiv 1707.01219)",
        {"weight": Option(50.0, "weight of the discrepancy")},
        _needs_maps,
        formula="CE(z, y) + weight * sum over stages of (mean of k(s, s') + mean of k(t, t') - 2 * mean of k(s, t))\n"
        "k(x, y) = <x, y>^2; s, t: the student's and the teacher's channels, each divided by its norm",
        source="arXiv 1707.01219",
        variant="All stages, as in the field's code.",
    ),
    "vid": Method(
        "orchestrator.losses.maps:VariationalInformation",
        "cross-entropy + negative log-likelihood of the teacher's maps, given the student's (CVPR 2019)",
        {"weight": Option(1.0, "weight of the negative log-likelihood")},
        _needs_maps,
        has_parameters=True,
        formula="CE(z, y) + weight * sum over stages of mean of ((r(student's) - teacher's map)^2 / v + log v) / 2\n"
        "r = three 1x1 convolutions of the student's map with ReLU between them\n"
        "v = 1e-5 + log(1 + exp(s)), with an s for each of the teacher's channels; v starts at 5",
        source="CVPR 2019 (Ahn et al., Variational Information Distillation for Knowledge Transfer)",
        variant="All stages, each with weight 1, as in the field's code.",
    ),
    "fsp": Method(
        "orchestrator.losses.maps:SolutionFlow",
        "cross-entropy + squared difference of the inner products between neighbouring maps (CVPR 2017)",
        {"weight": Option(50.0, "weight of the difference")},
        _needs_maps,
        mismatch=_width_mismatch,
        formula="CE(z, y) + weight * sum over neighbouring maps of mean of (G(student's) - G(teacher's))^2\n"
        "G_cd = mean over places of channel c of a map * channel d of the one before it, from the stem on",
        source="CVPR 2017 (Yim et al., A Gift from Knowledge Distillation)",
        variant="The paper and the field's code first train the student on this term alone, and then on the labels; "
        "here both terms train together.",
    ),
    "reviewkd": Method(
        "orchestrator.losses.reviewkd:ReviewKD",
        "cross-entropy + squared difference of all maps, each fused with those above it (arXiv 2104.09044)",
        {
            "weight": Option(1.0, "weight of the difference"),
            "warmup": Option(
                20, "epochs until the weight is reached; it grows by as much in each", least=1, most=100_000
            ),
        },
        lambda options: ("maps", "pooled"),
        has_parameters=True,
        mismatch=_stage_count_mismatch,
        formula="CE(z, y) + weight * min(epoch / warmup, 1) * sum over levels of HCL(student's, teacher's)\n"
        "levels: the stages' maps, and the pooled features as a map of one place\n"
        "student's = ABF(its map, what ABF gave of the level above), with trained convolutions and shares of both\n"
        "HCL = weighted mean of the squared differences of the maps, and of both pooled to 4x4, 2x2 and 1x1 places,\n"
        "each with half the weight of the one before",
        source="arXiv 2104.09044",
        variant="The published code compares with the teacher's maps before their last ReLU; here they are after it.",
    ),
}


def build(method: str, shapes: tuple[Shapes, Shapes] | None = None, /, **options: float | str | bool) -> Loss:
    """The loss of a method; options that are not given are at their defaults.

    `shapes` are those of student and teacher, which a method with parameters needs; these are drawn from torch's global
    generator. Raises ValueError for an unknown method or option, and for shapes that the method cannot compare.
    """
    facts = METHODS.get(method)
    if facts is None:
        raise ValueError(f"unknown method {method!r}; methods are {', '.join(METHODS)}")
    unknown = sorted(set(options) - set(facts.options))
    if unknown:
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; it has {', '.join(facts.options)}")
    module, attribute = facts.builder.split(":")
    builder: Callable[..., Loss] = getattr(import_module(module), attribute)
    if facts.has_parameters and shapes is None:
        raise ValueError(f"method {method!r} has parameters; build it with the shapes of student and teacher")
    return builder(*(shapes if facts.has_parameters and shapes else ()), **{**facts.defaults(), **options})
