"""What pyproject.toml cannot express: README.md as a package index shows it, with links that work outside this folder.

Everything else about the package stands in pyproject.toml, which also holds the one address that the links are made of.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINKS = ("orchestrator/models", "orchestrator/losses")


def with_absolute_links(text: str, repository: str) -> str:
    """Makes relative links and images absolute. Links within the page stay."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}[{match[2]}]({repository}/{kind}/main/{match[3]})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", absolute, text)


def long_description() -> str:
    """README.md for a package index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"])


if __name__ == "__main__":
    broken = [name for name in LINKS if not (ROOT / name).is_dir()]
    if broken:
        sys.exit(
            f"{' and '.join(broken)} should be links to the folders models and losses, but the program that unpacked "
            "these sources wrote something else in their place; use `git clone`, `tar` or `unzip`, or, on Windows, "
            "`git clone -c core.symlinks=true`"
        )
    setup(long_description=long_description(), long_description_content_type="text/markdown")
