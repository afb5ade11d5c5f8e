"""Tables for terminals, pages and papers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from amae_plugin.errors import UserError
from amae_plugin.files import replacing, write_csv, writing

_FORMS = {".md": "pipe", ".tex": "latex_booktabs"}
"""tabulate's names by the ending of a file."""
SUFFIXES = (*_FORMS, ".csv")
"""Endings of the files that a table can be written to."""


@dataclass(frozen=True)
class Table:
    """Table of texts, whose first column names the rows.

    Attributes:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self, form: str = "plain") -> str:
        """Return the table in a form of tabulate, the first column aligned to the left and the others to the right."""
        align = ("left", *["right"] * (len(self.header) - 1))
        return tabulate(self.rows, self.header, form, disable_numparse=True, colalign=align if self.rows else None)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as the ending of the file asks: Markdown, CSV, or LaTeX with the package booktabs.

        Raises:
            UserError: the ending is none of :data:`SUFFIXES`, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: a table is written to a file that ends in {', '.join(SUFFIXES)}")
        with writing(path, "it"):
            if path.suffix == ".csv":
                write_csv(path, [self.header, *self.rows])
            else:
                text = self.text(_FORMS[path.suffix])
                with replacing(path) as partial:
                    partial.write_text(f"{text.replace('±', _PLUS_MINUS.get(path.suffix, '±'))}\n", encoding="utf-8")
        return path


_PLUS_MINUS = {".tex": r"$\pm$"}
"""Sign by the ending of a file; LaTeX's standard fonts lack that of Unicode."""
