"""Pictures with a class for each pixel that the package `datasets` reads, from the Hub or from a folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from image_classification_data import load_splits, printed_and_hub_name
from PIL import Image
from segmentation_data import (
    LabelledGrid,
    as_channels,
    check_labels,
    check_pictures,
    picture_processor,
    whole,
)

from modeling_axial import AxialConfig
from modeling_axial.image_processing_axial import AxialImageProcessor


class HubPairs:
    """
    Pictures and their masks, two columns of a data set. It learns from the split "train" and measures on "validation",
    or on "test" if there is no such. Masks hold classes as those of `FolderPairs` do; all is read at once and stays in
    memory.

    Raises:
        `ValueError`: for a missing split or column, what cannot be read, a mask of another size than its picture, and
            labels and models as for `FolderPairs`.
        `ModuleNotFoundError`: without the package datasets.
    """

    license, notes, orientation = None, (), None  # only its page tells the license
    what_is_taken, pixels_of_shape = "An array of a picture, its channels last", "[:2]"

    def __init__(
        self,
        config: AxialConfig,
        name: str,
        image_column: str = "image",
        mask_column: str = "label",
        label_names: Sequence[str] | None = None,
        binary: bool = False,
    ):
        check_pictures(config)
        splits = load_splits(name, {image_column: "Image", mask_column: "Image"})
        self.name, self.hub_id = printed_and_hub_name(name)
        self.trained_on, self.measured_on = (f"the split {split.split} of `{self.name}`" for split in splits)
        self.train, self.held_out = (
            [read_row(split, number, image_column, mask_column, config, binary) for number in range(len(split))]
            for split in splits
        )
        self.label_names = check_labels(
            self.train, self.held_out, label_names, binary, config.semantic_loss_ignore_index
        )
        self.num_channels = config.num_channels

    def make_processor(self, config: AxialConfig) -> AxialImageProcessor:
        return picture_processor(config, self.num_channels)


def read_row(
    split: Any, number: int, image_column: str, mask_column: str, config: AxialConfig, binary: bool
) -> LabelledGrid:
    """A row of a data set as the model sees it, in its colours."""
    where = f"row {number} of the split {split.split}"
    try:
        picture, mask = (split[number][column] for column in (image_column, mask_column))
    except Exception as error:  # decoders meet bad bytes with nearly every type of exception
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(picture, Image.Image) or not isinstance(mask, Image.Image):
        raise ValueError(f"{where} lacks its picture or its mask")
    labels = np.asarray(mask)
    if labels.ndim != 2 or mask.size != picture.size:
        raise ValueError(
            f"the mask of {where} has {mask.size} pixels (width, height) in mode {mask.mode}; it must have the "
            f"{picture.size} of its picture and no colours but those of a palette"
        )
    return LabelledGrid(where, as_channels(picture, config.num_channels), whole(labels, f"the mask of {where}", binary))
