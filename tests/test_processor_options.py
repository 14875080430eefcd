"""Rules of options: whole numbers, lengths per axis, numbers per channel, and names that no processor knows.

What unknown options do in a processor's file is in `test_image_processing_axial.py`.
"""

import numpy as np
import pytest
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from modeling_axial.processor_options import StrictOptions, lengths, one_or_per_channel, per_channel, whole_number


def test_whole_numbers():
    assert whole_number(3, "n") == 3 and type(whole_number(np.int16(3), "n")) is int
    assert whole_number(-2, "n", least=-2) == -2
    for value in (True, np.True_, 3.0, "3", None, [3], 0):
        with pytest.raises(ValueError, match="n must be an int of at least 1, got"):
            whole_number(value, "n")


def test_lengths():
    assert lengths(3, "patch_size") == (3, 3)
    assert lengths([2, np.int64(3), 5], "patch_size") == (2, 3, 5)
    for value in ([], [2, 0], [2, -3], [2, 3.0], "23", None, [[2, 3]], 0):
        with pytest.raises(ValueError, match="patch_size must"):
            lengths(value, "patch_size")


def test_numbers_per_channel():
    assert per_channel(2, "image_mean", 3) == (2.0, 2.0, 2.0)
    assert per_channel(np.array([1e-300, 1 / 3]), "image_mean", 2) == (1e-300, 1 / 3)
    assert per_channel([-1.0], "image_mean", 1) == (-1.0,)
    for value in ([1.0, 2.0], [[1.0, 2.0, 3.0]], [1.0, np.nan, 2.0], np.inf, "one", None, [1.0, "x", 2.0]):
        with pytest.raises(ValueError, match="image_mean must"):
            per_channel(value, "image_mean", 3)
    for value in (0, [1.0, -1.0]):
        with pytest.raises(ValueError, match="image_std must be finite and greater than 0"):
            per_channel(value, "image_std", 2, positive=True)


def test_one_number_stays_one():
    assert one_or_per_channel(2, "image_mean", 3) == 2.0
    assert one_or_per_channel([2], "image_mean", 1) == (2.0,)
    with pytest.raises(ValueError, match="image_mean must"):
        one_or_per_channel([2], "image_mean", 3)
    with pytest.raises(ValueError, match="image_std must be finite and greater than 0"):
        one_or_per_channel(0, "image_std", 3, positive=True)


class Processor(StrictOptions, BaseImageProcessor):
    valid_kwargs = ImagesKwargs


def test_only_options_are_kept():
    with pytest.raises(ValueError, match="Processor has no option 'do_padd': did you mean 'do_pad'"):
        Processor(do_padd=True)
    processor = Processor(do_pad=True, processor_class="Other")
    processor.note = "of the user"
    assert processor.to_dict() == {"do_pad": True, "image_processor_type": "Processor"}
    with pytest.warns(UserWarning, match="no option 'zoom'. Ignored"):
        again = Processor.from_dict({"do_pad": True, "zoom": 2})
    assert again.to_dict() == {"do_pad": True, "image_processor_type": "Processor"}
