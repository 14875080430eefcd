"""Grids with a class for each pixel that are part of packages, which are not imported."""

from pathlib import Path

import numpy as np
from packaged_files import Package
from segmentation_data import LabelledGrid, fitted_processor, read_nifti, read_tiff

from modeling_axial import AxialConfig
from modeling_axial.grid_processing_axial import AxialGridProcessor

NILEARN = Package("nilearn", "0.14.1", "nilearn", "segmentation")
STARDIST = Package("stardist", "0.9.2", "stardist", "segmentation")
TENSORLY = Package("tensorly", "0.10.0", "tensorly", "segmentation")


class Nuclei:
    """
    Nuclei of cells in fluorescence microscopy, and what lies between them, in one grid of the package stardist, which
    is cut into halves along its last axis: one to learn from, the other to measure on. With a `validation_share`, that
    one is left alone, and the last rows of the first are measured on. The package is not imported.

    Raises:
        `ModuleNotFoundError`: without stardist, or without tifffile.
        `ValueError`: for files that are other ones, and a model that is not made for such grids.
    """

    hub_id, license, notes, orientation = "stardist", "bsd-3-clause", (), None
    label_names = ("background", "nucleus")
    what_is_taken, num_channels = "An array without channels", 1
    num_folds = 2
    num_axes: int
    image: str
    sha256: dict[str, str]

    def __init__(self, config: AxialConfig, fold: int, validation_share: float = 0.0):
        if config.num_axes != self.num_axes:
            raise ValueError(f"{self.image} has {self.num_axes} axes; the model has {config.num_axes}")
        values, mask = (read_tiff(STARDIST.file(f"data/images/{name}", sha)) for name, sha in self.sha256.items())
        labels = (mask > 0).astype(np.uint8)  # a mask numbers the nuclei
        middle = values.shape[-1] // 2
        halves = [
            LabelledGrid(f"the {side} half", values[None, ..., part], labels[..., part])
            for side, part in (("left", slice(middle)), ("right", slice(middle, None)))
        ]
        train, held_out = halves[fold], halves[1 - fold]
        if validation_share > 0:
            train, held_out = last_rows_apart(train, validation_share)
        self.train, self.held_out = [train], [held_out]
        self.pixels_of_shape = f"[-{self.num_axes}:]"
        self.trained_on, self.measured_on = (f"{grid.name} of {self.image} in stardist" for grid in (train, held_out))
        self.name = self.measured_on

    def make_processor(self, config: AxialConfig) -> AxialGridProcessor:
        return fitted_processor(self.train, config)


def last_rows_apart(grid: LabelledGrid, share: float) -> tuple[LabelledGrid, LabelledGrid]:
    """A grid cut in two along its first axis, `share` of its rows in the second part, and one row at least in each."""
    rows = len(grid.labels)
    first = min(max(1, round(rows * (1 - share))), rows - 1)
    return (
        LabelledGrid(f"the first rows of {grid.name}", grid.values[:, :first], grid.labels[:first]),
        LabelledGrid(f"the last rows of {grid.name}", grid.values[:, first:], grid.labels[first:]),
    )


class Nuclei2d(Nuclei):
    """512 x 512 pixels, a fifth of them nuclei, of the Data Science Bowl 2018 (Caicedo et al. 2019)."""

    num_axes, image = 2, "img2d.tif"
    sha256 = {
        "img2d.tif": "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750",
        "mask2d.tif": "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f",
    }


class Nuclei3d(Nuclei):
    """31 x 61 x 57 voxels of synthetic nuclei."""

    num_axes, image = 3, "img3d.tif"
    sha256 = {
        "img3d.tif": "f5626d500c7a738cd321698f43df36e2ac149d98456579c5cbcf8af48c7253e8",
        "mask3d.tif": "a2ff51b712941a90cf3a5628b11f04f5d7fa3f29c808c065d3be6ff938b215a1",
    }


class BrainTissue:
    """
    Tissue of the brain, 145 x 181 x 155 voxels of 1 mm: the T1-weighted mean of 152 heads without their skulls (ICBM
    2009a, symmetric; Fonov et al. 2011) in the package nilearn, and of its maps of grey and white matter the likelier
    one, or neither. The template is its own mirror image from left to right, so that these sides would tell all of each
    other: it is cut from back to front instead, with slices between that belong to none, into two halves (folds 0 and
    1) or four quarters (2 and 3), every other one to learn from, the others to measure on. With a `validation_share`,
    those are left alone, and the foremost slices of each of the first are measured on, likewise behind a gap.

    Raises:
        `ModuleNotFoundError`: without nilearn, or without nibabel.
        `ValueError`: for files that are other ones, and a model that is not made for such grids.
    """

    hub_id, license, notes, orientation = "nilearn", "other", (), None
    label_names = ("background", "cerebrospinal fluid", "grey matter", "white matter")
    what_is_taken, pixels_of_shape, num_channels = "An array without channels", "[-3:]", 1
    num_folds = 4
    # Gaps that leave 84 and 40 slices, whole patches, so that no cut is padded.
    halves = ("the back half", "the front half"), 13
    quarters = tuple(f"the {which} quarter from the back" for which in ("first", "second", "third", "fourth")), 7
    sha256 = {
        "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
        "gm": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
        "wm": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
    }

    def __init__(self, config: AxialConfig, fold: int, validation_share: float = 0.0):
        if config.num_axes != 3:
            raise ValueError(f"the brain has 3 axes; the model has {config.num_axes}")
        volumes = [np.asarray(read_nifti(self.file(kind))[0]) for kind in self.sha256]
        inside = np.nonzero(volumes[0])
        head, grey, white = (
            volume[tuple(slice(along.min(), along.max() + 1) for along in inside)] for volume in volumes
        )
        grey, white = grey.astype(np.int16), white.astype(np.int16)  # 255 is a probability of 1
        tissue = np.stack([255 - grey - white, grey, white]).argmax(0) + 1
        whole = LabelledGrid("", head[None], np.where(head > 0, tissue, 0).astype(np.uint8))
        names, gap = self.halves if fold < 2 else self.quarters
        length = (whole.labels.shape[1] - gap * (len(names) - 1)) // len(names)
        slabs = [slices_of(whole, name, at * (length + gap), length) for at, name in enumerate(names)]
        self.train, self.held_out = slabs[fold % 2 :: 2], slabs[1 - fold % 2 :: 2]
        if validation_share > 0:
            apart = [foremost_slices_apart(slab, validation_share, gap) for slab in self.train]
            self.train, self.held_out = map(list, zip(*apart, strict=True))
        self.trained_on, self.measured_on = (
            f"{' and '.join(grid.name for grid in grids)} of the brain in nilearn"
            for grids in (self.train, self.held_out)
        )
        self.name = self.measured_on

    @classmethod
    def file(cls, kind: str) -> Path:
        """`t1`, or the probabilities of grey (`gm`) or white (`wm`) matter, 255 for 1."""
        return NILEARN.file(f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz", cls.sha256[kind])

    def make_processor(self, config: AxialConfig) -> AxialGridProcessor:
        return fitted_processor(self.train, config)


def slices_of(grid: LabelledGrid, name: str, first: int, count: int) -> LabelledGrid:
    """`count` of the slices of a volume along its second axis, from `first` on."""
    part = slice(first, first + count)
    return LabelledGrid(name, grid.values[:, :, part], grid.labels[:, part])


def foremost_slices_apart(grid: LabelledGrid, share: float, gap: int) -> tuple[LabelledGrid, LabelledGrid]:
    """A volume cut in two, `gap` slices left out: a `share` of the others in front, and one at least in each part."""
    slices = grid.labels.shape[1] - gap
    first = min(max(1, round(slices * (1 - share))), slices - 1)
    return (
        slices_of(grid, f"the hind slices of {grid.name}", 0, first),
        slices_of(grid, f"the foremost slices of {grid.name}", first + gap, slices - first),
    )


class IndianPines:
    """
    A field of crops and woods from the air, in 200 wavelengths (AVIRIS, Baumgardner et al. 2015, CC BY 3.0): 145 x 145
    pixels, half of them with one of 16 classes, in the package tensorly. In blocks of 5 x 5 pixels, a tenth of which
    are to learn from, and the others to measure on: `fold` numbers the draws. All is one grid, where the pixels of
    other blocks do not count, so that a model sees what lies around, and channels are normalised by all pixels, as
    they would be with a field of its own. With a `validation_share`, so many of the blocks to learn from are measured
    on, and the others left alone.

    Raises:
        `ModuleNotFoundError`: without tensorly.
        `ValueError`: for files that are other ones, and a model that is not made for such grids.
    """

    hub_id, license, notes, orientation = "tensorly", "cc-by-3.0", (), None
    label_names = (
        *("alfalfa", "corn-notill", "corn-mintill", "corn", "grass-pasture", "grass-trees", "grass-pasture-mowed"),
        *("hay-windrowed", "oats", "soybean-notill", "soybean-mintill", "soybean-clean", "wheat", "woods"),
        *("buildings-grass-trees-drives", "stone-steel-towers"),
    )
    what_is_taken, pixels_of_shape, num_channels = "An array with the wavelengths as channels, first", "[-2:]", 200
    num_folds, block, share_to_learn = 5, 5, 0.1
    sha256 = {
        "Indian_pines_corrected.npy": "8f038e4d81569e38ebfc72a15c9984c150de42580ab260be10a13442e912e451",
        "Indian_pines_gt.npy": "44610d21625b311b05b8e0c4ba9a6cc755c2fbb9df48e4d89419024aa6ad3f9d",
    }

    def __init__(self, config: AxialConfig, fold: int, validation_share: float = 0.0):
        if config.num_axes != 2:
            raise ValueError(f"Indian Pines has 2 axes; the model has {config.num_axes}")
        values, classes = (np.load(TENSORLY.file(f"datasets/data/{name}", sha)) for name, sha in self.sha256.items())
        learnt, measured = self._blocks(classes, fold, validation_share)
        ignored = config.semantic_loss_ignore_index
        labels = classes.astype(np.int64) - 1  # 0 are pixels of no class
        self.train, self.held_out = (
            [LabelledGrid(which, values.transpose(2, 0, 1), np.where(part & (classes > 0), labels, ignored))]
            for which, part in (("blocks to learn from", learnt), ("other blocks", measured))
        )
        of_blocks = f"of {self.block} x {self.block} pixels of Indian Pines in tensorly, draw {fold}"
        self.trained_on = f"{round(100 * self.share_to_learn)} % of the blocks {of_blocks}"
        self.measured_on = f"the other blocks {of_blocks}"
        if validation_share:
            self.measured_on = f"blocks {of_blocks}, set apart to choose settings"
        self.name = "Indian Pines"

    def _blocks(self, classes: np.ndarray, fold: int, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
        """Boolean (rows, columns): which pixels lie in blocks to learn from, and in blocks to measure on."""
        rows, columns = (np.arange(length) // self.block for length in classes.shape)
        numbers = rows[:, None] * (columns[-1] + 1) + columns
        drawn = np.random.default_rng(fold).permutation(np.unique(numbers[classes > 0]))
        count = round(self.share_to_learn * len(drawn))
        learnt, others = drawn[:count], drawn[count:]
        if validation_share:
            apart = min(max(1, round(count * validation_share)), count - 1)
            learnt, others = learnt[apart:], learnt[:apart]
        return np.isin(numbers, learnt), np.isin(numbers, others)

    def make_processor(self, config: AxialConfig) -> AxialGridProcessor:
        return fitted_processor(self.train, config)


BUILT_IN = {
    "nuclei2d": Nuclei2d,
    "nuclei3d": Nuclei3d,
    "brain_tissue": BrainTissue,
    "indian_pines": IndianPines,
}
