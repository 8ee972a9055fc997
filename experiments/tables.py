"""Tables as text: Markdown that reads well in a terminal too."""

from collections.abc import Mapping, Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def render(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([render(lines[0]), rule, *map(render, lines[1:])])


ROW_COLUMNS = ("quantity", "basis", "predicted", "observed", "verdict")


def rows_as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The table predicted / observed / verdict, of rows as dictionaries."""
    return markdown([column.capitalize() for column in ROW_COLUMNS], [[row[c] for c in ROW_COLUMNS] for row in rows])
