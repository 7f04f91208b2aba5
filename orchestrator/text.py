"""Text for a person: escaped control characters, masked secrets, sizes and durations, suggestions for unknown words."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import quote

# Secrets and control characters.


def printable(text: str) -> str:
    """Text for a terminal, a row or a report: control characters are escaped, and secrets are masked."""
    return masked(_escaped(masked(text)))  # the second time for a secret that appears only after escaping


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Environment variables that hold secrets, by their names.
_SECRET_NAME = re.compile(
    r"(?:\A|_)(?:SECRET|SECRET_KEY|ACCESS_KEY|SESSION_TOKEN|TOKEN|PASSWORD|API_KEY)\Z|\AAWS_ACCESS_KEY_ID\Z"
)
_SHORTEST_SECRET = 6  # characters; masking `abc` everywhere would make messages unreadable

# Credentials before the host of a URL. A password may contain an unescaped slash, like the keys of buckets; after
# a host and its port comes a path, which may contain an @.
_USER = re.compile(r"://(?:[^\s/?#]*|[^\s/?#:@\[]*:(?!\d{1,5}/)[^\s@]{1,2000})@")
_QUERY = re.compile(
    r"([?&;][^\s?&;#=]{0,40}?(?:access_?key|secret|password|token|signature|api_?key|credential)[^\s?&;#=]{0,40}=)"
    r"[^\s&#]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Text with `***` for credentials in URLs and for the values of environment variables that hold secrets."""
    text = _USER.sub("://***@", text)
    text = _QUERY.sub(r"\1***", text)
    known = _known.get()
    secrets = _secrets() if known is None else known
    # Repeated, because the text around a mask may form another secret; each iteration shortens the text.
    while found := next((secret for secret in secrets if secret in text), None):
        text = text.replace(found, "***")
    return text


# The secrets in the environment, within `looking_once`.
_known: ContextVar[list[str] | None] = ContextVar("_known", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Within, the environment is searched for secrets once, not for every text: for pages of many texts."""
    token = _known.set(_secrets())
    try:
        yield
    finally:
        _known.reset(token)


def _secrets() -> list[str]:
    """The secrets in the environment in every form in which a message may contain them, longest first."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
    forms = {form for value in values for form in (value, _escaped(value), repr(value)[1:-1], _quoted(value))}
    return sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=lambda form: (-len(form), form))


def _quoted(value: str) -> str:
    """The form in a URL."""
    return quote(value, safe="", errors="replace")


# Short forms.


def shorten(text: str, most: int = 60) -> str:
    """Text cut to a length that leaves a message readable."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def format_size(size: float) -> str:
    """A number of bytes for a person, in decimal units: 1.5 GB is 1,500,000,000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def format_duration(seconds: float) -> str:
    """A time span, rounded to what an estimate can promise: `40 s`, `12 min`, `3 h 20 min`."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds < 10 else f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(10 * round(minutes / 10), 60)
    if hours < 36:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86400:.1f} days"


# Unknown words.


def nearest(unknown: object, known: Iterable[str]) -> str:
    """What to do about an unknown word: `did you mean …?`, or a plain `choose one of them`."""
    word = unknown[:100].lower() if isinstance(unknown, str) else ""  # comparing a long text takes long
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose one of them"


def nearest_file(path: Path) -> str:
    """What to do about a missing file: `did you mean …?` with a similar file in its folder, or `check the path`."""
    try:
        known = {
            entry.stem: entry for entry in path.parent.iterdir() if entry.suffix == path.suffix and entry.is_file()
        }
    except OSError:  # the folder does not exist either
        return "check the path"
    close = difflib.get_close_matches(path.stem[:100], list(known), n=1)
    return f"did you mean {known[close[0]]}?" if close else "check the path"
