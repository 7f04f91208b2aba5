"""A terminal for tests of the live view; like most terminals, it wraps lines again when it becomes narrower."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(\r\n)|([\r\n])|([^\x1b\r\n]+)")


class Terminal:
    """Rows of text, and the cursor. It supports only what the live view needs, and refuses everything else."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows: list[str] = [""]  # including those that scrolled away
        self.row = self.column = self.top = 0  # `top` is the first row on the screen
        self.is_cursor_visible = True
        self.is_unstyled = True
        self._continued: set[int] = set()  # rows that continue the row before

    def feed(self, text: str) -> None:
        """Interprets what a program writes."""
        while text:
            piece = _PIECE.match(text)
            assert piece, f"unknown to this terminal: {text[:20]!r}"
            self._take(piece)
            text = text[piece.end() :]

    def _take(self, piece: re.Match[str]) -> None:
        argument, command, both, control, plain = piece.groups()
        if plain:
            self._put(plain)
        elif both or control:
            self.column = 0
            if control != "\r":
                self._grow()
        elif command == "m":
            self.is_unstyled = argument in ("", "0")
        elif command == "A":
            self.row = max(self.top, self.row - int(argument))
        elif command == "K":
            assert argument == "" and self.column < self.width, "the last character would go"
            self.rows[self.row] = self.rows[self.row][: self.column]
            self._continued -= {self.row} if self.column == 0 else set()
        elif command == "J":
            assert self.column == 0 and argument == ""
            assert self.row > self.top, "tmux would take it for `clear`, and keep the screen in its history"
            self.rows = [*self.rows[: self.row], ""]
            self._continued = {row for row in self._continued if row < self.row}
        else:
            assert argument == "?25" and command in "hl", piece[0]
            self.is_cursor_visible = command == "h"

    def _grow(self) -> None:
        self.row += 1
        self.rows += [""] * (self.row + 1 - len(self.rows))
        self.top = max(self.top, len(self.rows) - self.height)  # what scrolled away stays there

    def _put(self, text: str) -> None:
        assert "\t" not in text and all(character.isprintable() for character in text), text
        self._continued -= {self.row} if self.column == 0 else set()
        for character in text:
            if self.column >= self.width:
                self._grow()
                self.column = 0
                self._continued.add(self.row)
            before = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = before[: self.column] + character + before[self.column + 1 :]
            self.column += 1

    def resize(self, width: int, height: int) -> None:
        """Changes the size: wraps lines that are too wide now, and joins those that were wrapped before."""
        assert self.column == 0 and self.row == len(self.rows) - 1
        lines: list[str] = []
        first = 0  # the line that the screen begins in
        for number, row in enumerate(self.rows[:-1]):
            if number in self._continued:
                lines[-1] += row
            else:
                lines.append(row)
            first = len(lines) - 1 if number <= self.top else first
        self.width, self.height, self.rows, self._continued, self.top = width, height, [], set(), 0
        for number, line in enumerate(lines):
            self.top = len(self.rows) if number == first else self.top
            parts = [line[at : at + width] for at in range(0, max(1, len(line)), width)]
            self._continued |= set(range(len(self.rows) + 1, len(self.rows) + len(parts)))
            self.rows += parts
        self.rows.append("")
        self.row = len(self.rows) - 1
        self.top = max(self.top, len(self.rows) - height)

    def screen(self) -> list[str]:
        """Returns the rows on the screen."""
        return [row.rstrip() for row in self.rows[self.top :]]

    def all(self) -> str:
        """Returns all rows, including those that scrolled away."""
        return "\n".join(row.rstrip() for row in self.rows)
