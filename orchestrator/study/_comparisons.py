"""Faults and warnings that are found only when the values of a study file are compared with each other.

Axes are compared pair by pair, never as their product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator import losses, models
from orchestrator.data.registry import facts_of
from orchestrator.errors import Fault
from orchestrator.models.family import Widths
from orchestrator.study import fields
from orchestrator.study.values import Axis, Experiment, Teacher, Value


def compare_axes(experiment: Experiment, recipe: Mapping[str, Value]) -> Iterator[Fault]:
    """Faults between axes. An axis that is missing or has a fault is empty here; the others are still checked."""
    datasets = experiment.axes.get("dataset", ())
    yield from _check_training(experiment)
    axes = _override(recipe, experiment.axes)
    yield from _check_images(axes, datasets)
    students = experiment.axes.get("student", ())
    yield from _check_sides(students, datasets)
    yield from _check_single_pixels(axes, students, datasets)
    for student, teacher in experiment.chain():
        if teacher.is_distilled:
            yield from _check_training(teacher)
        axes = _override_teacher(recipe, student, teacher)
        yield from _check_images(axes, datasets)
        yield from _check_sides(teacher.models, datasets)
        if "weights" not in teacher.axes:
            yield from _check_single_pixels(axes, teacher.models, datasets)
        for stated in teacher.axes.get("dataset", ()):
            for dataset in datasets:
                if stated.value != dataset.value:
                    message = (
                        f"the teacher is for {stated.value}, its student for {dataset.value}; "
                        "both use the same images; remove the teacher's dataset"
                    )
                    yield stated.fault(message)


def _check_training(experiment: Experiment) -> Iterator[Fault]:
    """Faults between a method, its options, its student and its teachers."""
    yield from _check_methods(experiment)
    yield from _check_options(experiment)
    yield from _check_widths(experiment)
    yield from _check_ensembles(experiment)


def _check_ensembles(experiment: Experiment) -> Iterator[Fault]:
    """Ensembles whose students have a method that needs more than logits; one fault for each ensemble."""
    needs = (method.needs(options) for method, options in _combine_options(experiment))
    wrong = next((kinds for kinds in needs if kinds not in ((), ("logits",))), None)
    for teacher in experiment.teachers:
        if teacher.is_ensemble and wrong:
            words = " and ".join("pooled features" if kind == "pooled" else kind for kind in wrong)
            yield teacher.value.fault(
                f"the method needs {words} of its teacher, and an ensemble teaches with the mean of logits alone, as "
                "features of different models cannot be averaged; use a method from logits, or one of the members"
            )


def check_weights(experiment: Experiment, folder: Path) -> Iterator[Fault]:
    """Weights files that do not fit the teacher that they are named for."""
    for _, teacher in experiment.chain():
        for value in teacher.axes.get("weights", ()):
            if value.value in teacher.digests:  # otherwise the file cannot be read, which is already a fault
                # Imported here: it loads torch, and a study without weights should not wait for that.
                from orchestrator.pretrained import weight_files

                path, digest = folder / value.value, teacher.digests[value.value]
                names = [model.value for model in teacher.models]
                classes = sorted({facts_of(dataset.value).classes for dataset in experiment.axes.get("dataset", ())})
                yield from map(value.fault, weight_files.find_problems(path, digest, itertools.product(names, classes)))


def _override(recipe: Mapping[str, Value], axes: Mapping[str, Axis]) -> dict[str, Axis]:
    """The axes of every recipe key after overriding."""
    return {**{name: (value,) for name, value in recipe.items()}, **axes}


def _override_teacher(recipe: Mapping[str, Value], experiment: Experiment, teacher: Teacher) -> dict[str, Axis]:
    """The axes of a teacher: those of the recipe, with the images of its student, and what the teacher overrides."""
    images = {name: axis for name, axis in experiment.axes.items() if name in fields.DATA_KEYS}
    return _override(recipe, {**images, **teacher.axes})


def _check_methods(experiment: Experiment) -> Iterator[Fault]:
    for method in experiment.axes.get("method", ()):
        name = method.value.name
        has_teacher = losses.get(name).has_teacher
        if has_teacher and not experiment.names_teacher:
            where = "to this teacher" if isinstance(experiment, Teacher) else "to the experiment"
            yield method.fault(f"method {name} needs a teacher; add `teacher: resnet_32_20` {where}")
        if not has_teacher and experiment.names_teacher:
            message = (
                f"method {name} has no use for the teacher; remove `teacher`, or give {name} an experiment of its own"
            )
            yield method.fault(message)


def _check_options(experiment: Experiment) -> Iterator[Fault]:
    chosen = [method.value for method in experiment.axes.get("method", ())]
    methods = list(dict.fromkeys(method.name for method in chosen))
    for name in sorted(set(experiment.axes) & set(fields.OPTION_KEYS)):
        if twice := [method.name for method in chosen if name in dict(method.options)]:
            message = f"{name} is also given under method {twice[0]}; remove one of the two"
            yield experiment.axes[name][0].fault(message)
        if methods and experiment.axes[name] and not any(name in losses.get(method).options for method in methods):
            takers = [method for method, facts in losses.METHODS.items() if name in facts.options]
            message = f"{name} belongs to method {', '.join(takers)}, not to {', '.join(methods)}; remove it"
            yield experiment.axes[name][0].fault(message)


def _check_widths(experiment: Experiment) -> Iterator[Fault]:
    """Teachers whose outputs a method cannot compare with a student's; one fault for each teacher's model.

    The widths of a user's own model are known only once it is built, so that `kdctl check` is the first to see them.
    """
    students: dict[Widths, str] = {}  # models of equal widths are equivalent here
    for student in experiment.axes.get("student", ()):
        if not models.is_own(student.value):
            students.setdefault(models.widths(student.value), student.value)
    choices = list(_combine_options(experiment))
    for model in itertools.chain.from_iterable(teacher.models for teacher in experiment.teachers):
        if models.is_own(model.value):
            continue
        teacher = models.widths(model.value)
        pairs = itertools.product(choices, students.items())
        found = ((name, method.mismatch(options, own, teacher)) for (method, options), (own, name) in pairs)
        for name, mismatch in itertools.islice(filter(lambda pair: pair[1], found), 1):
            yield model.fault(f"{model.value} cannot teach {name}: {mismatch}")


def _combine_options(experiment: Experiment) -> Iterator[tuple[losses.Method, losses.Options]]:
    """Each method with every combination of its options."""
    for method in experiment.axes.get("method", ()):
        facts = losses.get(method.value.name)
        given = [name for name in facts.options if name in fields.OPTION_KEYS and experiment.axes.get(name)]
        for values in itertools.product(*({value.value for value in experiment.axes[name]} for name in given)):
            yield facts, {**facts.defaults(), **dict(zip(given, values, strict=True)), **dict(method.value.options)}


def _check_images(axes: Mapping[str, Axis], datasets: Axis) -> Iterator[Fault]:
    for dataset in datasets:
        facts = facts_of(dataset.value)
        for padding in axes["crop_padding"]:
            if padding.value >= facts.side:
                message = (
                    f"found {padding.value}; {dataset.value} has {facts.side} pixels a side; use less than {facts.side}"
                )
                yield padding.fault(message)
        for name, most in (("limit_train", facts.train), ("limit_test", facts.test)):
            for limit in axes[name]:
                if limit.value is not None and limit.value > most:
                    message = (
                        f"found {limit.value:,}; {dataset.value} has {most:,} such images; use fewer, or remove {name}"
                    )
                    yield limit.fault(message)
        for holdout in axes["holdout"]:
            for limit in axes["limit_train"]:
                images = min(limit.value or facts.train, facts.train)
                if holdout.value >= images:
                    message = f"found {holdout.value:,} of {images:,} training images; leave some to train on"
                    yield holdout.fault(message)


def _check_sides(students: Axis, datasets: Axis) -> Iterator[Fault]:
    """Models whose last map has no pixel left of the images."""
    for model, dataset in itertools.product(students, datasets):
        side = facts_of(dataset.value).side
        if not models.sides(model.value, side)[-1]:
            least = next(larger for larger in itertools.count(side) if models.sides(model.value, larger)[-1])
            yield model.fault(
                f"{dataset.value} has {side} pixels a side, and {model.value} needs at least {least}; use another model"
            )


def _check_single_pixels(axes: Mapping[str, Axis], students: Axis, datasets: Axis) -> Iterator[Fault]:
    """Batches of one image where a batch norm sees one pixel of it: it has nothing to compute a variance from."""
    for model, dataset in itertools.product(students, datasets):
        facts = facts_of(dataset.value)
        limits = {min(limit.value or facts.train, facts.train) for limit in axes["limit_train"]}
        trained = {limit - holdout.value for limit, holdout in itertools.product(limits, axes["holdout"])}
        for batch in axes["batch_size"] if models.sides(model.value, facts.side)[-1] == 1 else ():
            single = [images for images in trained if images % batch.value == 1 or batch.value == 1]
            if single:
                yield batch.fault(
                    f"found {batch.value}; with {single[0]:,} images, the last batch is one image; {model.value} "
                    "reduces it to one pixel, and a batch norm cannot train on a single value; use another batch_size"
                )


def find_warnings(experiment: Experiment, recipe: Mapping[str, Value]) -> Iterator[Fault]:
    """What of an experiment has no effect, or misleads."""
    yield from _find_repeats(experiment)
    for student, teacher in experiment.chain():
        yield from itertools.islice(_find_leaks(student, teacher, recipe), 1)
    runs = [_override(recipe, experiment.axes)]
    runs += [_override_teacher(recipe, s, t) for s, t in experiment.chain() if "weights" not in t.axes]
    for axes in runs:
        for milestones in axes.get("milestones", ()):
            for epochs in axes["epochs"]:
                late = [milestone for milestone in milestones.value if milestone >= epochs.value]
                if late:
                    listed = ", ".join(map(str, late))
                    yield milestones.fault(f"warning: {listed} has no effect within {epochs.value} epochs")


def find_equal_experiments(experiments: Sequence[Experiment]) -> Iterator[Fault]:
    """Warnings for experiments that equal an earlier one."""
    first: dict[object, str] = {}
    for experiment in experiments:
        path = first.setdefault(list_values(experiment), experiment.value.path)
        if path != experiment.value.path:
            yield experiment.value.fault(f"warning: this equals {path}, and adds no trial; change a seed, or remove it")


def list_values(experiment: Experiment) -> tuple[object, ...]:
    """The values of its axes, and of those of its teachers."""
    axes = tuple(sorted((name, tuple(value.value for value in axis)) for name, axis in experiment.axes.items()))
    return axes, tuple(map(list_values, experiment.teachers))


def _find_repeats(experiment: Experiment) -> Iterator[Fault]:
    """A warning for the first value that an axis contains twice; both give the same trial."""
    for axes in (experiment.axes, *(teacher.axes for _, teacher in experiment.chain())):
        for axis in axes.values():
            first = {value.value: value for value in reversed(axis)}
            if again := next((value for value in axis if first[value.value] is not value), None):
                yield again.fault(f"warning: {again.value} is in this list twice, and the second adds no trial")


def _find_leaks(experiment: Experiment, teacher: Teacher, recipe: Mapping[str, Value]) -> Iterator[Fault]:
    """Warnings where a teacher is trained on images that its student holds out to select its epoch.

    Both take their images from the front of the same order (`tensors.load`), and hold out the last of them.
    """
    own = [teacher.axes[name] for name in ("holdout", "limit_train") if teacher.axes.get(name)]
    if not own or "weights" in teacher.axes:
        return  # its images are exactly those of its student, or are not known
    student = _override(recipe, experiment.axes)
    for dataset, holdout, limit in itertools.product(
        *(student[name] for name in ("dataset", "holdout", "limit_train"))
    ):
        total = facts_of(dataset.value).train
        images = min(limit.value or total, total)
        limits, holdouts = teacher.axes.get("limit_train", (limit,)), teacher.axes.get("holdout", (holdout,))
        for teacher_limit, teacher_holdout in itertools.product(limits, holdouts):
            trained = min(teacher_limit.value or total, total) - teacher_holdout.value
            leaked = min(trained, images) - (images - holdout.value)
            if leaked > 0:
                yield own[0][0].fault(
                    f"warning: the teacher is trained on {leaked:,} of the {holdout.value:,} images that its student "
                    "holds out to choose its epoch, so the validation accuracy is too high; remove the teacher's "
                    "holdout and limit_train, so that it is trained on its student's images"
                )
