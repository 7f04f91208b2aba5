"""A study file as checked values: YAML → `Study`, with all faults at once, each with its location and its fix."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator import losses
from orchestrator.data.folder import measure
from orchestrator.data.registry import OwnDataset
from orchestrator.errors import DataError, Fault, StudyError
from orchestrator.machine import paths
from orchestrator.own_code import datasets
from orchestrator.own_code.registry import register
from orchestrator.own_code.source import CodeKind, OwnCode, is_own, read_own_code, split_name
from orchestrator.study import document, fields
from orchestrator.study._comparisons import (
    check_weights,
    compare_axes,
    find_equal_experiments,
    find_warnings,
    list_values,
)
from orchestrator.study._overrides import apply
from orchestrator.study.document import Node
from orchestrator.study.fields import ImageFolder, Key
from orchestrator.study.values import Axis, Experiment, Resources, Study, Teacher, Value
from orchestrator.text import nearest, printable, shorten

_NOTE_AFTER = 1.0  # seconds until a note says that something takes longer
MAX_TRIALS = 100_000
PARTS = ("study", "recipe", "experiments", "resources")
NOTE = "x-"  # the beginning of top-level keys that exist only for their anchors
STUDY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_CHAIN = 5  # teachers of teachers
_CODE_KINDS = {fields.ModelValue: CodeKind.MODEL, fields.DatasetValue: CodeKind.DATASET}  # by the type of a key
_CHAIN_KEYS = ("method", "student", "teacher")  # a teacher with one of these is distilled
ENSEMBLE = "mean"  # the only key of a teacher that is an ensemble


def load_study(
    path: str | Path,
    settings: Sequence[str] = (),
    text: str | None = None,
    *,
    open_inputs: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Study:
    """Reads and checks the study in a file, with `settings` such as `recipe.epochs=2` applied.

    The file is read once, or not at all if its `text` is given. With `open_inputs` the weights files that it names are
    opened, and a file that does not fit its teacher is a fault; and a user's function that returns images is called
    even if it was called before. `on_note` gets a sentence if something takes longer than a moment. Raises StudyError
    with every fault found. Nothing in the file is ever executed, and of the code that it names that function alone.
    """
    try:
        path = paths.local(path, "study file")
    except paths.PathError as error:
        raise StudyError([Fault(str(path), 0, 0, "", str(error))]) from None
    faults: list[Fault] = []
    text = document.read_text(path) if text is None else text
    root = document.parse(text, str(path), faults)
    for setting in settings:
        faults += apply(root, setting)
    reader = _Reader(path, text, open_inputs=open_inputs, on_note=on_note)
    study = reader.read(root)
    if faults or reader.faults or study is None:
        raise StudyError(faults + reader.faults)
    return study


class _Reader:
    """Reads one document; collects faults instead of stopping at the first."""

    def __init__(self, path: Path, text: str, *, open_inputs: bool, on_note: Callable[[str], None]) -> None:
        self.path = path
        self.text = text
        self.open_inputs = open_inputs
        self.on_note = on_note
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []
        self.own_code: dict[str, OwnCode] = {}
        self.own_files: dict[str, str] = {}
        self._measured: dict[ImageFolder | OwnCode, OwnDataset | DataError] = {}
        self._names: dict[str, str] = {}  # of the user's own images, by their digest

    def read(self, root: Node) -> Study | None:
        if not self._is_mapping(root, "", PARTS):
            return None
        for _ in self._iterate_known(root, PARTS, ""):
            pass  # reports unknown keys
        name = self._read_name(root)
        recipe = self._read_recipe(root)
        resources = self._read_resources(root)
        experiments = self._read_experiments(root, recipe)
        warnings = tuple(sorted(set(self.warnings)))
        own = (self.own_code, self.own_files)
        return Study(name, recipe, experiments, resources, self.path, warnings, self.text, *own)

    # The four parts of the file.

    def _read_name(self, root: Node) -> str:
        node = self._require(root, "study", "", "give the study a name, like `study: resnet-logit`")
        if node is None:
            return ""
        if not isinstance(node.value, str) or not re.fullmatch(STUDY_NAME, node.value) or node.value.endswith("."):
            message = (
                f"found {node.describe()}; expected a safe file name: up to 64 letters, digits, '.', '_' and '-', "
                "starting with a letter or digit and not ending with '.'; rename the study"
            )
            self.faults.append(node.location.fault("study", message))
            return ""
        return node.value

    def _read_recipe(self, root: Node) -> dict[str, Value]:
        """Every key of the recipe, with defaults filled in."""
        assert isinstance(root.value, dict)
        node = root.value.get("recipe")
        given: dict[str, Value] = {}
        if node is not None and node.value is not None and self._is_mapping(node, "recipe", fields.RECIPE_KEYS):
            given = {
                name: value
                for name, child in self._iterate_known(node, fields.RECIPE_KEYS, "recipe")
                if (value := self._read_shared_value(fields.RECIPE_KEYS[name], child, f"recipe.{name}"))
            }
        location = node.location if node is not None else root.location
        recipe = {name: Value(key.default, location, f"recipe.{name}") for name, key in fields.RECIPE_KEYS.items()}
        for name in fields.DERIVED:  # their defaults follow from other settings of each trial, see `plan`
            del recipe[name]
        return recipe | given

    def _read_shared_value(self, key: Key, node: Node, path: str) -> Value | None:
        natural = isinstance(key.value_type, fields.EpochList)
        is_list = _find_grid(node) is not None or (isinstance(node.value, list) and not natural)
        values = () if is_list else self._read_axis(key, node, path)
        if is_list or len(values) > 1:
            message = (
                "found a list; the recipe has one value per key, which all experiments share; write the list in an "
                "experiment"
            )
            self.faults.append(node.location.fault(path, message))
            return None
        return values[0] if values else None

    def _read_resources(self, root: Node) -> Resources:
        assert isinstance(root.value, dict)
        node = root.value.get("resources")
        if node is None or node.value is None or not self._is_mapping(node, "resources", fields.RESOURCE_KEYS):
            return Resources()
        values = {}
        for name, child in self._iterate_known(node, fields.RESOURCE_KEYS, "resources"):
            if value := self._read_value(fields.RESOURCE_KEYS[name], child, f"resources.{name}"):
                values[name] = value.value
        return replace(Resources(), **values)

    def _read_experiments(self, root: Node, recipe: Mapping[str, Value]) -> tuple[Experiment, ...]:
        node = self._require(root, "experiments", "", "list at least one, each with method, dataset and student")
        if node is None:
            return ()
        if not isinstance(node.value, list) or not node.value:
            message = f"found {node.describe()}; expected a list of experiments; start each with `- method: …`"
            self.faults.append(node.location.fault("experiments", message))
            return ()
        found = []
        for index, child in enumerate(node.value):
            experiment = self._read_experiment(child, f"experiments[{index}]")
            if experiment:
                found.append(experiment)
                if _count_trials(experiment) > MAX_TRIALS:  # not compared either: it may have billions of pairs
                    self.faults.append(_describe_size(experiment))
                    continue
                self.faults += compare_axes(experiment, recipe)
                if self.open_inputs:
                    self.faults += check_weights(experiment, self.path.parent)
                self.warnings += find_warnings(experiment, recipe)
        self.warnings += find_equal_experiments(found)
        total = sum(map(_count_trials, found))
        if total > MAX_TRIALS and all(_count_trials(experiment) <= MAX_TRIALS for experiment in found):
            message = f"found {total:,} trials in all; at most {MAX_TRIALS:,} are allowed; split the study"
            self.faults.append(node.location.fault("experiments", message))
        return tuple(found)

    def _read_experiment(self, node: Node, path: str) -> Experiment | None:
        allowed = (*fields.EXPERIMENT_KEYS, "teacher")
        if not self._is_mapping(node, path, allowed):
            return None
        for name in ("method", "dataset", "student"):
            doc = fields.STUDENT_KEYS[name].doc
            self._require(node, name, path, f"every experiment needs it: {doc}")
        axes, teachers = self._read_settings(node, path, allowed, 1)
        assert isinstance(node.value, dict)
        return Experiment(axes, teachers, Value(None, node.location, path), "teacher" in node.value)

    def _read_settings(
        self, node: Node, path: str, allowed: Sequence[str], level: int
    ) -> tuple[dict[str, Axis], tuple[Teacher, ...]]:
        """The axes of an experiment and its teachers, which are the teachers number `level` of a chain."""
        axes: dict[str, Axis] = {}
        teachers: tuple[Teacher, ...] = ()
        known = sorted(self._iterate_known(node, allowed, path), key=lambda item: item[0] != "method")
        for name, child in known:  # the method first, as it defines how its options are read
            if name == "teacher":
                teachers = self._read_teachers(child, f"{path}.teacher", level)
            elif name in fields.OPTION_KEYS:
                axes[name] = self._read_option(name, child, f"{path}.{name}", axes.get("method", ()))
            else:
                axes[name] = self._read_axis(fields.EXPERIMENT_KEYS[name], child, f"{path}.{name}")
        return axes, teachers

    def _read_teachers(self, node: Node, path: str, level: int) -> tuple[Teacher, ...]:
        if level > MAX_CHAIN:
            message = f"this is teacher {level} of a chain; at most {MAX_CHAIN} are allowed; shorten the chain"
            self.faults.append(node.location.fault(path, message))
            return ()
        entries = self._list_entries(node, path)
        found = (self._read_teacher(child, child_path, level) for child, child_path in entries)
        return tuple(teacher for teacher in found if teacher)

    def _read_teacher(self, node: Node, path: str, level: int) -> Teacher | None:
        value = Value(None, node.location, path)
        if isinstance(node.value, str):
            model = self._read_value(fields.TEACHER_KEYS["model"], node, path)
            return Teacher({"model": (model,)}, (), value, False) if model else None
        if not self._is_mapping(node, path, fields.TEACHER_MAPPING_KEYS):
            return None
        assert isinstance(node.value, dict)
        if ENSEMBLE in node.value:
            return self._read_ensemble(node, path, level)
        if not node.value.keys().isdisjoint(_CHAIN_KEYS):
            return self._read_distilled(node, path, level)
        self._require(node, "model", path, "name the teacher's model, like `model: resnet_32_110`")
        axes = {
            name: self._read_axis(fields.TEACHER_MAPPING_KEYS[name], child, f"{path}.{name}")
            for name, child in self._iterate_known(node, fields.TEACHER_MAPPING_KEYS, path)
        }
        return Teacher(axes, (), value, False, self._digest_weights(axes))

    def _read_ensemble(self, node: Node, path: str, level: int) -> Teacher | None:
        """A teacher whose logits are the mean of those of its members."""
        assert isinstance(node.value, dict)
        for name in node.value.keys() - {ENSEMBLE}:
            message = "found next to mean; an ensemble has no settings; write them in each member, or remove them"
            self.faults.append(node.keys[name].fault(f"{path}.{shorten(name)}", message))
        listed, path = node.value[ENSEMBLE], f"{path}.{ENSEMBLE}"
        if not isinstance(listed.value, list) or len(listed.value) < 2:
            message = f"found {listed.describe()}; expected at least two teachers; write {{mean: [resnet_32_20, …]}}"
            if isinstance(listed.value, list) and listed.value:
                message = "found one teacher; a mean needs at least two; add one, or write that teacher without mean"
            self.faults.append(listed.location.fault(path, message))
            return None
        members = []
        for index, child in enumerate(listed.value):
            if isinstance(child.value, dict) and ENSEMBLE in child.value:
                message = "an ensemble within an ensemble; list its members in the outer one"
                self.faults.append(child.location.fault(f"{path}[{index}]", message))
            elif member := self._read_teacher(child, f"{path}[{index}]", level):
                members.append(member)
        first: dict[object, str] = {}
        for member in members:
            other = first.setdefault(list_values(member), member.value.path)
            if other != member.value.path:
                self.faults.append(
                    member.value.fault(f"this equals {other}; change its seed, or remove one of the two")
                )
        return Teacher({}, tuple(members), Value(None, node.location, path), True, is_ensemble=True)

    def _read_distilled(self, node: Node, path: str, level: int) -> Teacher:
        """A teacher that is trained as an experiment trains its student, on the images of its own student."""
        assert isinstance(node.value, dict)
        wrong = {
            "model": "a teacher that is distilled names its model as `student`; write student instead of model",
            "weights": "found weights for a teacher that is distilled; a teacher from a file is not trained; keep "
            "model and weights alone, or remove weights",
        }
        for name in wrong.keys() & node.value.keys():
            self.faults.append(node.keys[name].fault(f"{path}.{name}", wrong[name]))
        self._require(node, "method", path, "name what the teacher is distilled with, like `method: logit`")
        if "model" not in node.value:
            self._require(node, "student", path, "name the teacher's model, like `student: resnet_32_56`")
        known = replace(node, value={name: child for name, child in node.value.items() if name not in wrong})
        axes, teachers = self._read_settings(known, path, (*fields.EXPERIMENT_KEYS, "teacher"), level + 1)
        return Teacher({"method": (), **axes}, teachers, Value(None, node.location, path), "teacher" in node.value)

    def _digest_weights(self, axes: Mapping[str, Axis]) -> dict[str, str]:
        """SHA-256 of each weights file; a setting of training next to `weights` is a fault."""
        digests = {}
        for value in axes.get("weights", ()):
            try:
                digests[value.value] = _digest_file(self.path.parent / value.value)
            except OSError as error:
                message = (
                    f"{shorten(value.value)!r} cannot be read ({error.strerror}); paths are relative to the study file"
                )
                self.faults.append(value.fault(message))
        if "weights" in axes:
            for name in sorted(set(axes) & ({"seed"} | set(fields.TRAINING_KEYS))):
                message = (
                    f"found {name} next to weights; a teacher from a file is not trained; remove {name} or weights"
                )
                self.faults.append(axes[name][0].fault(message))
        return digests

    # Values and axes.

    def _list_entries(self, node: Node, path: str, natural_list: bool = False) -> list[tuple[Node, str]]:
        """The values of an axis, each with its path; an empty axis is a fault."""
        grid = _find_grid(node)
        if grid is not None:
            node, path = grid, f"{path}.grid"
            if not isinstance(node.value, list):
                message = f"found {node.describe()}; expected a list of values; write {{grid: [a, b]}}"
                self.faults.append(node.location.fault(path, message))
                return []
        elif natural_list or not isinstance(node.value, list):
            return [(node, path)]
        assert isinstance(node.value, list)
        if not node.value:
            message = "found an empty list; an axis needs at least one value; add one, or remove the key"
            self.faults.append(node.location.fault(path, message))
        return [(child, f"{path}[{index}]") for index, child in enumerate(node.value)]

    def _read_axis(self, key: Key, node: Node, path: str) -> Axis:
        entries = self._list_entries(node, path, natural_list=isinstance(key.value_type, fields.EpochList))
        if isinstance(key.value_type, fields.Selected):
            selections = (self._read_selections(key, child, child_path) for child, child_path in entries)
            return tuple(itertools.chain.from_iterable(selections))
        found = (self._read_value(key, child, child_path) for child, child_path in entries)
        return tuple(value for value in found if value)

    def _read_selections(self, key: Key, node: Node, path: str) -> Iterator[Value]:
        """The entries of a table that a node names: one for each combination of the values of their options."""
        given, kind = node.value, key.value_type
        assert isinstance(kind, fields.Selected)
        if kind.combines and (own := self._read_own_code(node.value, node, path)) is not None:
            yield from (Value(fields.Selection(own), node.location, path),) if own else ()
        elif not isinstance(given, dict) or not given or (len(given) > 1 and not kind.combines):
            value = self._read_value(key, node, path)
            yield from (value,) if value else ()
        else:
            names = [*kind.table, *(name for name in given if kind.combines and is_own(name))]
            parts = [
                list(self._read_selection(kind, name, child, f"{path}.{name}"))
                for name, child in self._iterate_known(node, names, path)
            ]
            for chosen in itertools.product(*parts):
                if chosen and self._fit_together(chosen, node, path):
                    yield Value(fields.combine(chosen), node.location, path)

    def _read_selection(self, kind: fields.Selected, name: str, node: Node, path: str) -> Iterator[fields.Selection]:
        """One entry with each combination of the values of its options."""
        own = self._read_own_code(name, node, path) if kind.combines else None
        if own == "":
            return
        options = losses.get(own).options if own else kind.table[name].options
        if node.value is None and kind.combines:
            yield fields.Selection(own or name)
        elif not options:
            self.faults.append(node.location.fault(path, f"{name} has no options; write its name alone"))
        elif self._is_mapping(node, path, options):
            axes = {
                option: self._read_axis(fields.option_key(options[option]), value, f"{path}.{option}")
                for option, value in sorted(self._iterate_known(node, options, path))
            }
            for values in itertools.product(*axes.values()):
                chosen = tuple((option, value.value) for option, value in zip(axes, values, strict=True))
                yield fields.Selection(own or name, chosen)

    def _fit_together(self, chosen: Sequence[fields.Selection], node: Node, path: str) -> bool:
        """Whether methods can be combined; where not, that is a fault."""
        if len(chosen) == 1:
            return True
        idle = [each.name for each in chosen if not losses.get(each.name).has_teacher]
        combined = fields.combine(chosen)
        message = losses.find_conflict({**losses.get(combined.name).defaults(), **dict(combined.options)})
        if idle:
            message = f"{idle[0]} has no distillation term that could be combined with others; remove it"
        if message and (fault := node.location.fault(path, message)) not in self.faults:
            self.faults.append(fault)
        return not message

    def _read_own_code(self, given: object, node: Node, path: str, kind: CodeKind = CodeKind.LOSS) -> str | None:
        """The name of a user's own loss or model, which it registers; "" if it has a fault, None for other values."""
        try:
            named = split_name(given)
            if named is None:
                return None
            file = paths.local(named[0], "the path")
            code = read_own_code(self.path.parent / file, named[1], kind)
            if self.own_code.setdefault(code.name, code) != code:
                raise ValueError(f"two files define {code.name}; rename one of them")
            register([code])
            self.own_files |= {str(file.parent / path): text for path, text in code.files}
        except (ValueError, paths.PathError) as error:
            self.faults.append(node.location.fault(path, str(error)))
            return ""
        return code.name

    def _read_option(self, name: str, node: Node, path: str, methods: Axis) -> Axis:
        """An option that is written next to the methods of its experiment."""
        owners = (losses.get(method.value.name).options for method in methods)
        keys = {key.value_type: key for key in (fields.option_key(own[name]) for own in owners if name in own)}
        if len(keys) > 1:
            message = (
                f"its methods mean different things by {name}; write it under each: `method: {{NAME: {{{name}: …}}}}`"
            )
            self.faults.append(node.location.fault(path, message))
        return self._read_axis(next(iter(keys.values()), fields.OPTION_KEYS[name]), node, path)

    def _read_value(self, key: Key, node: Node, path: str) -> Value | None:
        kind = _CODE_KINDS.get(type(key.value_type))
        own = self._read_own_code(node.value, node, path, kind) if kind else None
        if own == "":
            return None
        try:
            found = own or key.value_type.read(node)
            if own and kind is CodeKind.DATASET:
                found = self._measure(self.own_code[own])
            elif isinstance(found, ImageFolder):
                found = self._measure(found)
            return Value(found, node.location, path)
        except (ValueError, DataError) as error:
            self.faults.append(node.location.fault(path, str(error)))
            return None

    def _measure(self, source: ImageFolder | OwnCode) -> OwnDataset:
        """Measures the images in a folder or of a function, once for each. Raises DataError."""
        found = self._measured.get(source)
        if found is None:
            try:
                found = self._measure_folder(source) if isinstance(source, ImageFolder) else self._measure_code(source)
                # Equal images are one dataset, with the name of the first.
                found = replace(found, name=self._names.setdefault(found.facts.digest, found.name))
            except DataError as error:
                found = error
            self._measured[source] = found
        if isinstance(found, DataError):
            raise found
        return found

    def _measure_folder(self, folder: ImageFolder) -> OwnDataset:
        progress = _report_progress(folder.path, self.on_note)
        return replace(measure(self.path.parent / folder.path, folder.size, progress), path=folder.path)

    def _measure_code(self, code: OwnCode) -> OwnDataset:
        def report() -> None:
            self.on_note(f"reading the images that {code.attribute} in {printable(code.file)} returns")

        return datasets.measure(code, anew=self.open_inputs, on_start=report)

    # Mappings.

    def _is_mapping(self, node: Node, path: str, allowed: Iterable[str]) -> bool:
        if isinstance(node.value, dict):
            return True
        names = list(allowed)
        listed = ", ".join(names if len(names) <= 8 else [*names[:8], "…"])
        message = f"found {node.describe()}; expected a mapping with the keys {listed}; write `key: value` lines"
        self.faults.append(node.location.fault(path, message))
        return False

    def _iterate_known(self, node: Node, allowed: Iterable[str], path: str) -> Iterator[tuple[str, Node]]:
        """The entries with a known key; each unknown key is a fault."""
        assert isinstance(node.value, dict)
        names = list(allowed)
        for name, child in node.value.items():
            if name in names:
                yield name, child
            elif path or not name.startswith(NOTE):
                message = f"unknown key; known are {', '.join(names)}; {_suggest_key(name, names, path, child)}"
                self.faults.append(node.keys[name].fault(f"{path}.{shorten(name)}".lstrip("."), message))

    def _require(self, node: Node, name: str, path: str, fix: str) -> Node | None:
        assert isinstance(node.value, dict)
        if name not in node.value:
            where = f"{path}.{name}".lstrip(".")
            self.faults.append(node.location.fault(where, f"key {name!r} is missing; {fix}"))
        return node.value.get(name)


def _report_progress(folder: str, on_note: Callable[[str], None]) -> Callable[[int, int], None]:
    """A callback that notes, once, that a folder is being measured, if that takes more than a moment."""
    start, is_noted = time.monotonic(), False

    def report(done: int, total: int) -> None:
        nonlocal is_noted
        if not is_noted and done < total and time.monotonic() - start > _NOTE_AFTER:
            is_noted = True
            on_note(f"measuring the {total:,} images in {printable(folder)}, once")

    return report


def _suggest_key(name: str, names: Sequence[str], path: str, value: Node) -> str:
    """What to do about a key that is not known here: another part of the file may have it, or a similar key."""
    experiment = re.match(r"experiments\[[0-9]+\]", path)
    parts = {
        experiment[0] if experiment else "experiments[0]": ("teacher", *fields.EXPERIMENT_KEYS),
        "resources": tuple(fields.RESOURCE_KEYS),
        "recipe": tuple(fields.RECIPE_KEYS),
    }
    elsewhere = {key: f"{part}.{key}" for part, known in parts.items() for key in known}
    advice = nearest(name, names)
    if name in elsewhere or (not path and advice.startswith("choose")):
        similar = difflib.get_close_matches(name, elsewhere, n=1)
        advice = f"did you mean {elsewhere[similar[0]]}?" if similar else advice
    if not path and isinstance(value.value, dict | list):
        return f"{advice} a key that is there only for its anchor begins with {NOTE}, like {NOTE}{shorten(name, 20)}"
    return advice


def _find_grid(node: Node) -> Node | None:
    """The list in a node of the form `{grid: [...]}`; None for any other node."""
    return node.value["grid"] if isinstance(node.value, dict) and list(node.value) == ["grid"] else None


def _digest_file(path: Path) -> str:
    if not path.is_file() and path.exists():
        raise OSError(0, "it is not a file")  # a device may never end
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count_teachers(experiment: Experiment) -> int:
    return sum(map(_count_trials, experiment.teachers))


def _count_trials(experiment: Experiment) -> int:
    if isinstance(experiment, Teacher) and experiment.is_ensemble:
        return math.prod(map(_count_trials, experiment.teachers))
    return math.prod(map(len, experiment.axes.values())) * max(1, _count_teachers(experiment))


def _describe_size(experiment: Experiment) -> Fault:
    factors = [f"{len(axis):,} {name}" for name, axis in experiment.axes.items() if len(axis) > 1]
    if (count := _count_teachers(experiment)) > 1:
        factors.append(f"{count:,} teacher")
    product = f"{' × '.join(factors)} = {_count_trials(experiment):,} trials"
    return experiment.value.fault(f"the axes multiply to {product}; at most {MAX_TRIALS:,} are allowed; shorten one")
