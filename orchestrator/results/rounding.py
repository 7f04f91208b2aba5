"""Statistics as text for people, with the digits that their spread justifies and true minus signs."""

from __future__ import annotations

from orchestrator.results.summary import Statistic

MINUS = "\u2212"
_SINGLE = 2  # decimals of a single run, which has no spread
_LEAST_P = 0.0001
_MOST = 4  # decimals; an accuracy in % over 50,000 images has steps of 0.002


def count_decimals(std: float | None) -> int:
    """The decimals of a mean with this standard deviation, which is written with two significant digits."""
    if not std:  # one run, or several that are equal
        return _SINGLE
    exponent = int(f"{std:.1e}".partition("e")[2])  # after rounding: 0.996 becomes 1.0
    return min(max(1 - exponent, 0), _MOST)


def format_number(value: float, decimals: int, *, is_signed: bool = False) -> str:
    """A number like `−0.52`, or `+0.52` if it is to have a sign; what rounds to zero has none."""
    text = f"{value:+.{decimals}f}" if is_signed else f"{value:.{decimals}f}"
    is_zero = not text.strip("+-0.")
    return text.lstrip("+-") if is_zero else text.replace("-", MINUS)


def format_mean(found: Statistic) -> str:
    """Mean and standard deviation, like `89.9 ± 1.7`; without n."""
    decimals = count_decimals(found.std)
    spread = "" if found.std is None else f" ± {format_number(found.std, decimals)}"
    return f"{format_number(found.mean, decimals)}{spread}"


def format_interval(found: Statistic, *, is_signed: bool = False) -> str:
    """The 95 % confidence interval of the mean, like `[87.8, 92.0]`; empty for a single run."""
    decimals = count_decimals(found.std)
    ends = found.interval()
    return f"[{', '.join(format_number(end, decimals, is_signed=is_signed) for end in ends)}]" if ends else ""


def format_difference(found: Statistic) -> str:
    """A mean difference with its interval, like `+11.2 [+7.1, +15.2]`; a single pair has no interval."""
    mean = format_number(found.mean, count_decimals(found.std), is_signed=True)
    return f"{mean} {format_interval(found, is_signed=True)}".rstrip()


def format_p(p: float | None) -> str:
    """A p value with two significant digits, like `0.047` or `< 0.0001`; empty if there is none."""
    if p is None:
        return ""
    if p < _LEAST_P:
        return f"< {_LEAST_P}"
    return f"{p:.2g}"
