"""Names of cells as the paper prints them."""

from dent.paper.spec import Table


def label(table: Table, key: str) -> str:
    """Return the name of a cell `row/column`: its group and row, then its column."""
    row, _, column = key.partition("/")
    return f"{_row(table, row)}: {_column(table, column)}"


def label_of(table: Table, cells: tuple[str, ...]) -> str:
    """Return the name of a pair of cells, or of one cell. A shared row or column appears once."""
    if len(cells) == 1:
        return label(table, cells[0])
    (row, column), (other_row, other_column) = (key.split("/") for key in cells)
    if row == other_row:
        columns = f"{_column(table, column)} against {_column(table, other_column)}"
        return f"{_row(table, row)}: {columns}"
    if column == other_column:
        rows = f"{_row(table, row)} against {_row(table, other_row)}"
        return f"{rows}: {_column(table, column)}"
    return " against ".join(label(table, key) for key in cells)


def _row(table: Table, name: str) -> str:
    row = next(row for row in table.rows if row.id == name)
    return f"{row.group}, {row.label}" if row.group else row.label


def _column(table: Table, name: str) -> str:
    return next(column.label for column in table.columns if column.id == name)
