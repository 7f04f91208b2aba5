"""A user's own images as a function in a Python file returns them: `dataset: ./my_data.py:load` of a study file.

The function is called with `train` and with `test`. It returns either a pair of arrays, images [N, S, S, 3] or
[N, S, S] of type uint8 and labels [N], or a dataset as torchvision's are: `len(dataset)` items of an image and a label.
What such images are is measured as for a folder, see `data.measurements`, and part of the config of every trial on
them. The function runs where the study file is read, and never on a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from orchestrator.data import measurements
from orchestrator.data.registry import OwnDataset
from orchestrator.errors import DataError
from orchestrator.machine.streams import reserved_stdout
from orchestrator.own_code.loading import OwnCodeError, guard, load
from orchestrator.own_code.source import OwnCode

if TYPE_CHECKING:  # NumPy is loaded where images are read, not where a stored measurement is
    from numpy.typing import NDArray

    from orchestrator.data.order import Labels, Pixels, Splits

_EXPECTED = "expected a pair of arrays, images and labels, or a dataset of (image, label) items"


@dataclass(frozen=True, slots=True)
class CodeDataset(OwnDataset):
    """The images that a function returns."""

    code: OwnCode = field(compare=False, repr=False)

    def read(self) -> Splits:
        """Calls the function. Raises DataError, also if it returns other images than those that were measured."""
        splits = _read(self.code)
        measurements.check(self.code.file, splits, self.facts)
        return splits


def measure(code: OwnCode, *, anew: bool, on_start: Callable[[], None]) -> CodeDataset:
    """Measures the images that a function returns; `on_start` is called before the function is.

    What was measured before is used unless `anew` is true or the text of the code has changed, as what else the
    function reads is not known. Raises DataError for images that cannot be used, and where the function raises.
    """
    path = Path(code.folder, code.file)
    kept = measurements.locate(path, code.attribute)
    facts = None if anew else measurements.load(kept, code.digest)
    if facts is None:
        on_start()
        facts = measurements.measure(_read(code))
        measurements.save(kept, code.digest, facts)
    name = measurements.name_images(f"{PurePosixPath(code.file).stem}-{code.attribute}", facts)
    return CodeDataset(code.file, name, facts, code)


def _read(code: OwnCode) -> Splits:
    from orchestrator.data import order

    try:
        with reserved_stdout():  # what the user's code prints is no output of a command
            function = load(code)
            splits = {split: _Split(code, split).read(function) for split in order.SPLITS}
    except OwnCodeError as error:
        raise DataError(str(error)) from error
    _compare(code, splits)
    return order.sort_splits(splits)


def _compare(code: OwnCode, splits: Splits) -> None:
    """Raises DataError where the splits do not fit together."""
    import numpy as np

    from orchestrator.data import order

    (images, labels), (test, test_labels) = (splits[split] for split in order.SPLITS)
    classes = int(labels.max()) + 1
    if missing := np.setdiff1d(np.arange(classes), labels)[:5].tolist():
        raise _error(
            code, f"the largest training label is {classes - 1}, but no training image has the label {missing[0]}; "
            "number the classes from 0 without gaps",
        )  # fmt: skip
    if classes < 2:
        raise _error(code, "all training labels are 0; expected at least two classes")
    if (most := int(test_labels.max())) >= classes:
        raise _error(code, f"a test image has the label {most}, but the training labels end at {classes - 1}")
    if images.shape[1:] != test.shape[1:]:
        sides = f"{images.shape[1]}×{images.shape[1]} and {test.shape[1]}×{test.shape[1]}"
        raise _error(code, f"images of train and test are {sides}; expected one size; resize them in your code")


def _error(code: OwnCode, message: str) -> DataError:
    return DataError(f"{code.file}: {code.attribute}: {message}")


class _Split:
    """Reads what a function returns for one split."""

    def __init__(self, code: OwnCode, split: str) -> None:
        self._code = code
        self._split = split

    def read(self, function: Callable[[str], Any]) -> tuple[Pixels, Labels]:
        found = guard(self._code, lambda: function(self._split))
        if isinstance(found, tuple) and len(found) == 2:
            return self._read_pair(*found)
        return self._read_items(found)

    def _read_pair(self, images: Any, labels: Any) -> tuple[Pixels, Labels]:
        if hasattr(images, "shape"):
            pixels = self._check_pixels(self._to_array(images, "images"))
        else:
            number = self._count(images)
            pixels = self._gather(self._take(images, number), number)
        return pixels, self._check_labels(labels, len(pixels))

    def _read_items(self, found: Any) -> tuple[Pixels, Labels]:
        labels: list[Any] = []
        number = self._count(found)

        def take_images() -> Iterator[Any]:
            for item in self._take(found, number):
                if not isinstance(item, tuple | list) or len(item) != 2:
                    raise self._error(f"item {len(labels)} is {type(item).__name__}; expected (image, label)")
                labels.append(item[1])
                yield item[0]

        return self._gather(take_images(), number), self._check_labels(labels, number)

    def _count(self, items: Any) -> int:
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or isinstance(items, dict | str):
            raise self._error(f"returned {type(items).__name__}; {_EXPECTED}")
        return int(guard(self._code, lambda: len(items)))

    def _take(self, items: Any, number: int) -> Iterator[Any]:
        return (guard(self._code, partial(items.__getitem__, index)) for index in range(number))

    def _gather(self, images: Iterator[Any], number: int) -> Pixels:
        """Single images as one array, filled as they come."""
        import numpy as np

        gathered: Pixels | None = None
        for index, image in enumerate(images):
            (pixels,) = self._check_pixels(self._to_array(image, f"image {index}")[None], index)
            if gathered is None:
                gathered = self._make_room(number, len(pixels))
            if pixels.shape != gathered.shape[1:]:
                first, own = gathered.shape[1], len(pixels)
                raise self._error(f"image {index} is {own}×{own}, and the first one {first}×{first}; resize them")
            gathered[index] = pixels
        return np.empty((0, 1, 1, 3), np.uint8) if gathered is None else gathered

    def _make_room(self, number: int, side: int) -> Pixels:
        import numpy as np

        measurements.check_size(self._code.file, number, side, "return smaller images")
        return np.empty((number, side, side, 3), np.uint8)

    def _check_pixels(self, found: NDArray[Any], index: int | None = None) -> Pixels:
        """Images [N, S, S, 3]: grey ones have their channel three times. `index` is that of a single one."""
        shape = list(found.shape if index is None else found.shape[1:])
        what = "images" if index is None else f"image {index}"
        if found.dtype != "uint8":
            raise self._error(
                f"{what}: found {found.dtype}; expected uint8, 0 to 255; return them as they were stored, without a "
                "transform: kdctl normalises and augments them"
            )
        if found.ndim == 3:
            found = found[..., None]
        if found.ndim != 4 or found.shape[1] != found.shape[2] or found.shape[3] not in (1, 3):
            of = "[N, S, S, 3] or [N, S, S]" if index is None else "[S, S, 3] or [S, S]"
            raise self._error(f"{what}: found shape {shape}; expected {of}, square images; crop or transpose them")
        measurements.check_size(self._code.file, len(found), found.shape[1], "return smaller images")
        return found.repeat(3, axis=3) if found.shape[3] == 1 else found

    def _check_labels(self, given: Any, images: int) -> Labels:
        import numpy as np

        if not images:
            raise self._error("returned no images")
        found = self._to_array(given, "labels")
        if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != images:
            described = f"{found.dtype} of shape {list(found.shape)}"
            raise self._error(f"labels: found {described} for {images:,} images; expected [N] whole numbers")
        if (least := int(found.min())) < 0:
            raise self._error(f"found the label {least}; expected the numbers of classes, from 0")
        return found.astype(np.int64)

    def _to_array(self, given: Any, what: str) -> NDArray[Any]:
        """An array of an array, a tensor, a Pillow image or a list; a Pillow image of another mode becomes RGB."""
        import numpy as np

        if hasattr(given, "convert") and given.mode not in ("RGB", "L"):
            given = given.convert("RGB")
        try:
            return np.asarray(given)
        except (TypeError, ValueError, RuntimeError) as error:  # lists of several lengths, tensors of a GPU
            raise self._error(f"{what}: found {type(given).__name__}, which is no array: {error}") from None

    def _error(self, message: str) -> DataError:
        return DataError(f'{self._code.file}: {self._code.attribute}("{self._split}") {message}')
