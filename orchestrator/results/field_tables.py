"""The field's published results on CIFAR-100, which are shown next to runs with their protocol alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import losses
from orchestrator.records import TrialRecord
from orchestrator.results.published import OMITTED, compare_settings
from orchestrator.results.summary import Group


@dataclass(frozen=True, slots=True)
class Source:
    """Where figures were printed, and which epoch of a run they are of."""

    name: str
    paper: str
    epoch: str


_CRD = Source("CRD", "arXiv 1910.10699, the tables of its code's README", "last epoch")
_DKD = Source("DKD", "arXiv 2203.08679, the tables of its code's README", "best epoch")
_LSKD = Source("LSKD", "arXiv 2403.01427, the tables of its code's README", "best epoch")
_DIST = Source("DIST", "arXiv 2205.10536, as in the tables of TTM", "epoch not stated")
_TTM = Source("TTM", "arXiv 2402.11148, the tables of its code's README", "epoch not stated")


@dataclass(frozen=True, slots=True)
class Figure:
    """A published test accuracy in %, one number for a number of runs that is not printed with it.

    `options` are those of its method that do not have kdctl's defaults; `unknown` is one that is not published.
    """

    acc: float
    source: Source
    options: Mapping[str, Any]
    unknown: str = ""


_PAIRS = (  # teacher and student, in the order of the cells below
    ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet_32_56", "resnet_32_20"),
    ("resnet_32_110", "resnet_32_20"), ("resnet_32_110", "resnet_32_32"), ("resnet_32x4", "resnet_8x4"),
    ("vgg_13", "vgg_8"),
    ("vgg_13", "mobilenet_v2"), ("resnet_50", "mobilenet_v2"), ("resnet_50", "vgg_8"),
    ("resnet_32x4", "shufflenet_v1"), ("resnet_32x4", "shufflenet_v2"), ("wrn_40_2", "shufflenet_v1"),
)  # fmt: skip
_ALONE = {
    "wrn_40_2": 75.61, "resnet_32_56": 72.34, "resnet_32_110": 74.31, "resnet_32x4": 79.42, "vgg_13": 74.64,
    "resnet_50": 79.34, "wrn_16_2": 73.26, "wrn_40_1": 71.98, "resnet_32_20": 69.06, "resnet_32_32": 71.14,
    "resnet_8x4": 72.50, "vgg_8": 70.36, "mobilenet_v2": 64.60, "shufflenet_v1": 70.50, "shufflenet_v2": 71.82,
}  # fmt: skip

_Key = tuple[str, str | None, str]  # method, teacher and student
FIGURES: dict[_Key, list[Figure]] = {("base", None, model): [Figure(acc, _CRD, {})] for model, acc in _ALONE.items()}


def _add(method: str, source: Source, cells: str, unknown: str = "", **columns: str) -> None:
    """Adds a row of a table: cells in the order of `_PAIRS`, and for each pair the options that are no defaults."""
    options = {name: column.split() for name, column in columns.items()}
    for no, ((teacher, student), cell) in enumerate(zip(_PAIRS, cells.split(), strict=True)):
        if cell != "-":
            own = {name: float(column[no]) for name, column in options.items()}
            if "standardize" in own:
                own["standardize"] = True
            is_unknown = unknown and (teacher, student) != ("vgg_13", "vgg_8")
            figure = Figure(float(cell), source, own, unknown if is_unknown else "")
            FIGURES.setdefault((method, teacher, student), []).append(figure)


_add("kd", _CRD, "74.92 73.54 70.66 70.67 73.08 73.33 72.98  67.37 67.35 73.81 74.07 74.45 74.83")
_add("fitnet", _CRD, "73.58 72.24 69.21 68.99 71.06 73.50 71.02  64.14 63.16 70.69 73.59 73.54 73.73")
_add("at", _CRD, "74.08 72.77 70.55 70.22 72.31 73.44 71.43  59.40 58.58 71.84 71.73 72.73 73.32")
_add("sp", _CRD, "73.83 72.43 69.67 70.04 72.69 72.94 72.68  66.30 68.08 73.34 73.48 74.56 74.52")
_add("cc", _CRD, "73.56 72.21 69.63 69.48 71.48 72.97 70.71  64.86 65.43 70.25 71.14 71.29 71.38")
_add("vid", _CRD, "74.11 73.30 70.38 70.16 72.61 73.09 71.23  65.56 67.57 70.30 73.38 73.40 73.61")
_add("rkd", _CRD, "73.35 72.22 69.61 69.25 71.82 71.90 71.48  64.52 64.43 71.50 72.28 73.21 72.21")
_add("pkt", _CRD, "74.54 73.45 70.34 70.25 72.61 73.64 72.88  67.13 66.52 73.01 74.10 74.69 73.89")
_add("fsp", _CRD, "72.91 - 69.95 70.11 71.89 72.62 70.23  - - - - - -")
_add("nst", _CRD, "73.68 72.24 69.60 69.53 71.96 73.30 71.53  58.16 64.96 71.28 74.12 74.68 74.89")
_add("crd", _CRD, "75.48 74.14 71.16 71.46 73.48 75.51 73.94  69.73 69.11 74.30 75.11 75.65 76.05")
_add("dist", _DIST, "75.51 74.73 71.75 71.65 73.69 76.31 73.89  68.50 68.66 74.11 76.34 77.35 76.40")
_BETA = "6 6 2 2 2 8 6  6 8 8 8 8 8"
_add("dkd", _DKD, "76.24 74.81 71.97 - 74.11 76.32 74.68  69.71 70.35 - 76.45 77.07 76.70", beta=_BETA)
_add("dkd", _LSKD, "- - - 71.06 - - -  - - - - - -", beta=_BETA)
_add("ttm", _TTM, "76.23 74.32 71.83 71.46 73.97 76.17 74.33  68.98 69.24 74.87 74.18 76.57 75.39", "weight")
_add("wttm", _TTM, "76.37 74.58 71.92 71.67 74.13 76.06 74.44  69.16 69.59 74.82 74.37 76.55 75.42", "weight")
_add("ctkd", _LSKD, "75.45 73.93 71.19 70.99 73.52 73.39 73.52  68.50 68.67 - - 75.37 -")
_ALL = " ".join("1" for _ in _PAIRS)
_add(
    "kd", _LSKD, "76.11 74.37 71.43 71.48 74.17 76.62 74.36  68.61 - - - 75.56 -", standardize=_ALL,
    temperature="2 2 2 4 2 2 3  3 - - - 2 -", weight="9 9 9 12 9 9 9  9 - - - 9 -",
)  # fmt: skip
_add(  # alpha is the published weight, and beta the published beta times that
    "dkd", _LSKD, "76.39 74.89 72.32 71.85 74.29 77.01 74.81  - - - - - -", standardize=_ALL,
    temperature="2 2 3 2 2 2 2  - - - - - -", alpha="12 12 18 15 15 9 15  - - - - - -",
    beta="24 24 36 30 30 72 30  - - - - - -",
)  # fmt: skip

# What every published run was trained with. Padding may differ, which is then named.
_PROTOCOL: Mapping[str, Any] = {
    **{name: value for name, value in OMITTED.items() if name != "padding"},
    "epochs": 240, "batch_size": 64, "momentum": 0.9, "weight_decay": 5e-4, "milestones": [150, 180, 210],
    "gamma": 0.1, "crop_padding": 4, "flip": True, "limit_train": None, "limit_test": None, "holdout": 0,
}  # fmt: skip
_SLOW = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # these start at a lower learning rate


def find_figure(row: TrialRecord) -> Figure | None:
    """The figure for a run's method, options and models; None without one, or where the run has another protocol."""
    if row.dataset != "cifar100":
        return None
    found = FIGURES.get((row.method, row.teacher, row.student), ())
    options = row.recipe.get("options") or {}
    defaults = losses.METHODS[row.method].defaults() if found else {}
    figure = next((each for each in found if {**defaults, **options} == {**defaults, **each.options}), None)
    return figure if figure and _has_protocol(row) else None


def _has_protocol(row: TrialRecord) -> bool:
    own = {**row.recipe, "epochs": row.nepoch, "lr": row.lr, "batch_size": row.batch_size}
    return _is_comparable(own, row.student) and (row.teacher is None or _is_comparable(row.recipe["teacher"], ""))


def _is_comparable(recipe: Mapping[str, Any] | None, model: str) -> bool:
    """Whether a model was trained as published; weights from a file count if every test image was used."""
    recipe = {**OMITTED, "method": "base", **(recipe or {})}
    if recipe.get("weights"):
        return recipe.get("limit_test") is None
    protocol = {**_PROTOCOL, "lr": 0.01 if model in _SLOW else 0.05}
    is_base = bool(model) or recipe["method"] == "base"  # a published teacher was not distilled itself
    return is_base and not any(compare_settings(protocol, recipe))


# Text.

_USUAL = (
    "the same training, with other teachers and seeds and an unstated number of runs, on images normalised by means "
    "and deviations that differ from ours in the fourth digit"
)


def describe_figures(groups: Iterable[Group]) -> Iterator[str]:
    """Where the figures next to some groups come from, and how their runs differ from ours; nothing without figures."""
    shown = [(group, figure) for group in groups if (figure := find_figure(group.rows[0]))]
    for source in dict.fromkeys(figure.source for _, figure in shown):
        yield f"Published by {source.name} ({source.paper}; {source.epoch}): {_USUAL}"
    labels: dict[str, list[str]] = {}
    for group, figure in shown:
        labels.setdefault("; ".join(_list_differences(group.rows[0], figure)), []).append(group.label)
    for text, settings in labels.items():
        if text:
            where = settings[0] if len(settings) == 1 else f"{len(settings)} of {len(shown)} settings"
            yield f"Differs from the published runs as well ({where}): {text}"


def _list_differences(row: TrialRecord, figure: Figure) -> Iterator[str]:
    for recipe, prefix in ((row.recipe, ""), (row.recipe.get("teacher") or {}, "teacher.")):
        if recipe.get("weights"):
            yield f"{prefix}weights from a file"
        elif recipe:
            yield from compare_settings({"padding": "zero"}, {**OMITTED, **recipe}, prefix)
    if (dtype := row.recipe.get("arithmetic")) in ("bfloat16", "float16"):
        yield f"convolutions in {dtype}"
    if figure.unknown:
        yield f"the published {figure.unknown} for this pair is not known"
