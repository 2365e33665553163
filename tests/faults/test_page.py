"""The page has every row and no failure; that it is true is for `python -m tests.faults.page`."""

from __future__ import annotations

import re

from tests.faults.page import BEGINNING, END, HERE, PAGE, line, row_of
from tests.faults.page import Result as Made
from tests.faults.rows import ROWS


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    tested = {
        row_of(found[0])
        for file in HERE.glob("test_*.py")
        for found in re.finditer(r"^def test_row_\d\d", file.read_text(), re.MULTILINE)
    }
    assert tested == {row.number for row in ROWS}
    assert tested == {*range(1, 36)} - {*range(19, 25)}


def test_the_page_tells_the_result_of_every_row() -> None:
    text = PAGE.read_text()
    assert text.startswith(BEGINNING)
    assert text.endswith(END)
    written = text.removeprefix(BEGINNING).removesuffix(END).splitlines()
    assert len(written) == len(ROWS)
    for row, told in zip(ROWS, written, strict=True):
        cells = [cell.strip() for cell in told.strip("|").split("|")]
        wanted = [cell.strip() for cell in line(row, Made()).strip("|\n").split("|")]
        assert cells[:6] == wanted[:6]
        assert cells[6].startswith(row.allowed)
        failed, total = map(int, cells[7].split(" of "))
        assert total > 0
        assert cells[8] not in ("failed", "not run")
        if row.allowed == "0":
            assert failed == 0
