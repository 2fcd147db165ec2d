"""Lines of a text, by number."""

from collections.abc import Iterable, Iterator

Lines = Iterable[str]


class Numbered:
    """Lines with the number of the last one taken, counted from 1."""

    def __init__(self, lines: Lines):
        self.lines, self.line, self.ahead = iter(lines), 0, None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self.ahead = self.ahead, None
        line = next(self.lines) if line is None else line
        self.line += 1
        return line

    def next(self) -> str:
        """The next line, empty at the end."""
        return next(self, "")

    def skip(self, start: str) -> bool:
        """Take all lines with this first word; tell whether there were any."""
        found = False
        while (line := self.next()).lstrip().startswith(start):
            found = True
        if line:
            self.ahead, self.line = line, self.line - 1
        return found


def shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) < 60 else text[:57] + "..."
