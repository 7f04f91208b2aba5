"""The formats that commands write, apart from what writes them: the help of a command lists them and loads no more."""

from __future__ import annotations

from enum import StrEnum


class ResultsFormat(StrEnum):
    """What `kdctl results` writes."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"


class QueryFormat(StrEnum):
    """What `kdctl query` writes."""

    TABLE = "table"
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    PARQUET = "parquet"
    MARKDOWN = "markdown"


class ReportFormat(StrEnum):
    """What `kdctl report` writes."""

    HTML = "html"
    MARKDOWN = "markdown"

    @property
    def suffix(self) -> str:
        """The ending of its file."""
        return ".md" if self is ReportFormat.MARKDOWN else ".html"
