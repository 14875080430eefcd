"""A classifier of tables in context: what changes nothing, what informs nobody, and scikit-learn's own checks."""

import warnings
from statistics import NormalDist

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, train_test_split
from sklearn.utils.estimator_checks import check_estimator

from configuration import load_preset
from examples.tabular_in_context import (
    NUM_CHANNELS,
    AxialForTableClassification,
    TableClassifier,
    normal_ranks,
    ridge_scores,
    standardise,
    table_channels,
)
from modeling_axial import AxialConfig

SMALL = {"image_size": [64, 9], "patch_size": 1, "num_channels": NUM_CHANNELS, "hidden_size": 8}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 2, "position_embedding": "none", "num_labels": 4}
# Nothing is left of these; a check that comes to fail is to be named here with its reason.
EXPECTED_FAILED_CHECKS = {}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = AxialForTableClassification(AxialConfig(**SMALL)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def table():
    """3 tables of 11 labelled and 7 other rows, 5 features and 3 classes."""
    draw = torch.Generator().manual_seed(0)
    features = 3 + 2 * torch.randn(3, 18, 5, dtype=torch.float64, generator=draw)
    labels = torch.randint(3, (3, 11), generator=draw)
    labels[:, :3] = torch.arange(3)
    return features, labels


@torch.no_grad()
def logits(model, features, labels, num_classes=3):
    return model(features, labels, num_classes).logits


def assert_equal(actual, expected):
    assert expected.std() > 0.01
    assert torch.allclose(actual, expected, rtol=0, atol=1e-9)


# What changes nothing


def test_order_of_labelled_rows_and_of_features(model, table):
    features, labels = table
    expected = logits(model, features, labels)
    assert expected.shape == (3, 7, 3)
    rows = torch.randperm(11)
    shuffled = torch.cat([features[:, :11][:, rows], features[:, 11:]], 1)
    assert_equal(logits(model, shuffled, labels[:, rows]), expected)
    assert_equal(logits(model, features[:, :, torch.randperm(5)], labels), expected)


def test_other_rows_and_classes_are_permuted_with_what_is_said_of_them(model, table):
    features, labels = table
    expected = logits(model, features, labels)
    rows, names = torch.randperm(7), torch.tensor([2, 0, 1])
    shuffled = torch.cat([features[:, :11], features[:, 11:][:, rows]], 1)
    assert_equal(logits(model, shuffled, labels), expected[:, rows])
    assert_equal(logits(model, features, names[labels])[..., names], expected)


def test_units_of_features_do_not_matter(model, table):
    features, labels = table
    scaled = features * torch.tensor([1e-3, 1, 7, 1e5, 2]) + torch.tensor([0.0, 10, -5, 1e3, 1])
    assert torch.allclose(logits(model, scaled, labels), logits(model, features, labels), atol=1e-6)


def test_a_feature_that_is_constant_in_the_labelled_rows_is_not_read(model, table):
    features, labels = table
    constant = torch.cat([torch.full((3, 11, 1), 0.1), torch.randn(3, 7, 1)], 1).double()
    values = standardise(torch.cat([features, constant], 2), 11)
    assert torch.equal(values[..., -1], torch.zeros(3, 18, dtype=torch.float64))
    targets = torch.nn.functional.one_hot(labels).double()
    assert_equal(ridge_scores(values, targets, [1.0]), ridge_scores(values[..., :-1], targets, [1.0]))


def test_rows_to_predict_inform_nobody(model, table):
    features, labels = table
    expected = logits(model, features, labels)
    others = features.clone()
    others[:, 13:] = 100 * torch.randn(3, 5, 5)
    assert_equal(logits(model, others, labels)[:, :2], expected[:, :2])
    assert_equal(logits(model, features[:, :13], labels), expected[:, :2])


def test_every_label_informs_every_row(model, table):
    """Or the tests above would hold for a model that reads nothing."""
    features, labels = table
    expected = logits(model, features, labels)
    for row in (3, 10):
        changed = labels.clone()
        changed[:, row] = (labels[:, row] + 1) % 3
        assert ((logits(model, features, changed) - expected).abs().amax((0, 2)) > 1e-4).all()
        moved = features.clone()
        moved[:, row] += 1
        assert ((logits(model, moved, labels) - expected).abs().amax((0, 2)) > 1e-5).all()


# What it is told


def test_standardised_by_the_labelled_rows():
    features = torch.tensor([[[1.0], [3.0], [1000.0], [2.0]]], dtype=torch.float64)
    values = standardise(features, 2)
    assert torch.allclose(values[0, :2, 0], 3 * torch.tensor([-1.0, 1.0]).double().div(3).asinh())
    assert values[0, 3] == 0 and 15 < values[0, 2] < 25


def test_normal_ranks_are_those_of_the_slow_way():
    """With values that are equal, that lie between those of the labelled rows, and beyond them."""
    features = torch.randint(-4, 5, (2, 40, 3), generator=torch.Generator().manual_seed(0)).double()
    features[:, 11:] *= 1.3
    features[1, :11, 2] = 1.0
    found = normal_ranks(features, 11)
    for table, ranks in zip(features.numpy(), found.numpy(), strict=True):
        for column, expected in zip(table.T, ranks.T, strict=True):
            labelled, known = column[:11], sorted(set(column[:11]))
            shares = [((labelled < value).sum() + (labelled == value).sum() / 2) / 11 for value in known]
            quantiles = [NormalDist().inv_cdf(share) for share in shares]
            np.testing.assert_allclose(expected, np.interp(column, known, quantiles), rtol=0, atol=1e-13)


def test_ranks_do_not_change_with_a_growing_function_of_known_values(table):
    features = table[0]
    expected, found = normal_ranks(features, 18), normal_ranks(features**3, 18)
    assert expected.std() > 0.5 and torch.equal(found, expected)


def test_ridge_scores_are_those_of_scikit_learn(table):
    features, labels = table
    values, targets = standardise(features, 11), torch.nn.functional.one_hot(labels).double()
    scores = ridge_scores(values, targets, [0.3, 2.0]).numpy()
    assert scores.shape == (3, 18, 3, 2)
    x, y = values[1].numpy(), targets[1].numpy()
    base = y.mean(0)
    for at, strength in enumerate((0.3, 2.0)):
        ridge = Ridge(alpha=5 * strength, fit_intercept=False)
        np.testing.assert_allclose(ridge.fit(x[:11], y - base).predict(x[11:]) + base, scores[1, 11:, :, at])
        for kept, (row,) in LeaveOneOut().split(y):
            left_out = ridge.fit(x[kept], (y - base)[kept]).predict(x[[row]]) + base
            np.testing.assert_allclose(left_out[0], scores[1, row, :, at])


def test_channels_by_hand():
    values = torch.tensor([[[3.0, -1.0], [0.5, 2.0], [0.0, 1.0]]])
    channels = table_channels(values, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert channels.shape == (2, NUM_CHANNELS, 3, 3)
    for of_class, label in zip(channels, ([1, -1, 0], [-1, 1, 0]), strict=True):
        assert of_class[0].tolist() == [[3, -1, 0], [0.5, 2, 0], [0, 1, 0]]
        assert of_class[1, 0].tolist() == pytest.approx([3, 1 / 3, 0])
        assert of_class[2].tolist() == [[number] * 3 for number in label]
        assert of_class[3].tolist() == [[1] * 3, [1] * 3, [0] * 3]
        assert of_class[4].tolist() == [[0, 0, 1]] * 3
        assert not of_class[5:, :, :2].any() and of_class[5:, :, 2].all()


def test_loss_is_the_cross_entropy_of_the_other_rows(model, table):
    features, labels = table
    targets = torch.randint(3, (3, 7))
    output = model(features, labels, targets=targets)
    chosen = output.logits.log_softmax(-1).gather(-1, targets[..., None])
    assert output.loss.item() == pytest.approx(-chosen.mean().item(), rel=1e-6)


def test_saved_and_loaded(model, table, tmp_path):
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("modeling_*"))  # they would open another class
    loaded = AxialForTableClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(logits(loaded, *table), logits(model, *table))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"patch_size": [1, 3]}, r"needs patch_size=\[1, 1\], got \[1, 3\]"),
        ({"num_channels": 3}, "needs num_channels=8, got 3"),
        (
            {"position_embedding": ["none", "learned"]},
            r"needs position_embedding=\['none'\], got \['learned', 'none'\]",
        ),
        ({"feed_forward": "convolution"}, "needs feed_forward=mlp or gated_mlp, got convolution"),
        ({"reversible": True}, "needs reversible=False"),
    ],
)
def test_configurations_of_other_models(overrides, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        AxialForTableClassification(AxialConfig(**{**SMALL, **overrides}))


def test_shapes_that_do_not_fit(model, table):
    features, labels = table
    for bad in ((features[0], labels), (features, labels[:, :0]), (features[:, :10], labels), (features, labels[0])):
        with pytest.raises(ValueError, match="labelled rows"):
            model(*bad)


# The estimator


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


def test_wine():
    """As the guide to tables has it, of the checkpoint of this repository."""
    features, labels = load_wine(return_X_y=True)
    given, others, known, truth = train_test_split(features, labels, train_size=30, stratify=labels, random_state=0)
    assert TableClassifier().fit(given, known).score(others, truth) > 0.9


def test_checks_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the table has")
        warnings.filterwarnings("ignore", "SCIPY_ARRAY_API is not set")
        results = check_estimator(
            TableClassifier(), expected_failed_checks=EXPECTED_FAILED_CHECKS, on_skip=None, on_fail="raise"
        )
    assert sum(result["status"] == "passed" for result in results) >= 54
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(EXPECTED_FAILED_CHECKS)


def test_names_of_classes_and_order_of_everything(checkpoint):
    features, labels = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    given, others, known, _ = train_test_split(features, labels, train_size=20, stratify=labels, random_state=0)
    classifier = TableClassifier(checkpoint).fit(given, known)
    expected = classifier.predict_proba(others)
    assert expected.shape == (130, 3) and expected.std() > 0.01
    np.testing.assert_allclose(expected.sum(1), 1)
    rows, columns = np.random.default_rng(0).permutation(20), [2, 0, 3, 1]
    other_names = np.array(["c", "a", "b"])
    shuffled = TableClassifier(checkpoint).fit(given[rows][:, columns], other_names[known[rows]])
    assert shuffled.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(shuffled.predict_proba(others[:, columns]), expected[:, [1, 2, 0]], rtol=0, atol=1e-9)
    predicted = TableClassifier(checkpoint).fit(given, names[known]).predict(others)
    assert predicted.tolist() == names[expected.argmax(1)].tolist()


def test_two_views_are_averaged(checkpoint, model):
    features, labels = load_iris(return_X_y=True)
    classifier = TableClassifier(checkpoint).fit(features[::7], labels[::7])
    rows = torch.from_numpy(np.concatenate([features[::7], features]))
    views = [
        logits(model, view, torch.from_numpy(labels[None, ::7])) for view in (rows[None], normal_ranks(rows[None], 22))
    ]
    product = (views[0].softmax(-1) * views[1].softmax(-1)).sqrt()[0]
    assert not torch.allclose(*views, atol=0.1)
    expected = product / product.sum(-1, keepdim=True)
    np.testing.assert_allclose(classifier.predict_proba(features), expected.numpy(), rtol=0, atol=1e-12)


def test_new_rows_at_a_time_do_not_matter(checkpoint, monkeypatch):
    features, labels = load_iris(return_X_y=True)
    classifier = TableClassifier(checkpoint).fit(features[::7], labels[::7])
    expected = classifier.predict_proba(features)
    monkeypatch.setattr("examples.tabular_in_context.MAX_CELLS", 500)
    np.testing.assert_allclose(classifier.predict_proba(features), expected, rtol=0, atol=1e-12)


def test_features_without_any_difference(checkpoint):
    """Nothing is known but the labels: the answer is one for all rows."""
    probabilities = TableClassifier(checkpoint).fit(np.ones((6, 2)), [0, 0, 0, 0, 1, 1]).predict_proba(np.eye(2))
    np.testing.assert_allclose(probabilities[0], probabilities[1])


def test_bad_input(checkpoint):
    classifier = TableClassifier(checkpoint)
    with pytest.raises(NotFittedError):
        classifier.predict([[1.0, 2.0]])
    with pytest.raises(ValueError, match="at least 2 classes, got one class alone: \\['a'\\]"):
        classifier.fit([[1.0], [2.0]], ["a", "a"])
    with pytest.raises(ValueError, match="contains NaN"):
        classifier.fit([[1.0], [np.nan]], [0, 1])
    with pytest.raises(ValueError, match="infinity"):
        classifier.fit([[1.0], [2.0]], [0, 1]).predict([[np.inf]])
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        classifier.fit([[1.0], [2.0]], [0.5, 1.5])
    with pytest.raises(ValueError, match="2 features, but TableClassifier is expecting 1 features"):
        classifier.fit([[1.0], [2.0]], [0, 1]).predict([[1.0, 2.0]])
    with pytest.raises(OSError):
        TableClassifier("nowhere").fit([[1.0], [2.0]], [0, 1])


@pytest.mark.parametrize(
    ("rows", "features", "classes", "words"),
    [
        (65, 2, 2, "65 labelled rows, in training there were at most 64"),
        (20, 9, 2, "9 features, in training there were at most 8"),
        (20, 2, 5, "5 classes, in training there were at most 4"),
    ],
)
def test_tables_beyond_those_of_the_training_are_read_with_a_warning(checkpoint, rows, features, classes, words):
    x = np.random.default_rng(0).normal(size=(rows, features))
    with pytest.warns(UserWarning, match=words):
        classifier = TableClassifier(checkpoint).fit(x, np.arange(rows) % classes)
    assert classifier.predict_proba(x).shape == (rows, classes)


def test_preset_is_of_this_model():
    config = load_preset("tables")
    assert config.num_channels == NUM_CHANNELS
    assert AxialForTableClassification(config).num_parameters() < 200_000
