"""The picture of the first page: what it says of one layer and of two, and that it can be drawn anew."""

import numpy as np
import pytest
from PIL import Image

from examples.front_picture import CELL, GRID, cells_read, main


def test_a_cell_reads_its_row_and_its_column_and_by_two_layers_all():
    cross = np.zeros(GRID, bool)
    cross[CELL[0]] = cross[:, CELL[1]] = True
    assert np.array_equal(cells_read(1), cross)
    assert cells_read(2).all()


@pytest.mark.audit
def test_all_is_drawn(tmp_path, capsys):
    main(["--output", str(tmp_path / "pictures" / "axial.png")])
    assert "axial.png" in capsys.readouterr().out
    with Image.open(tmp_path / "pictures" / "axial.png") as picture:
        width, height = picture.size
        assert width > 3 * height
        panels = np.split(np.asarray(picture.convert("L"))[:, : width - width % 4], 4, axis=1)
    assert all(panel.std() > 20 for panel in panels)  # none is empty
