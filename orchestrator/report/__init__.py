"""The report of a study as one page, in HTML or Markdown: facts, figures, sections, templates.

Imports `results`, `study` and the layers below. Start with `page`, and in a notebook with `figures`.
"""
