"""What the example tells about a model: attention maps, silenced attention, the figure, the model card."""

import ast
import warnings
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import TensorDataset

from examples.image_classification_report import (
    attention_received,
    attention_silenced,
    baseline_accuracies,
    draw_confusion,
    draw_predictions,
    loading_lines,
    score_lines,
    score_table,
    write_model_card,
)
from examples.image_classification_scores import score
from modeling_axial import AxialConfig, AxialForImageClassification


def make_model(**overrides):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[6, 10],
        patch_size=2,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.5,
        num_labels=4,
        **overrides,
    )
    return AxialForImageClassification(config).eval()


def test_attention_received_equals_the_loops():
    batch, grid, layers, heads = 2, (2, 3, 5), 2, 4
    draw = torch.Generator().manual_seed(0)
    # weights[layer][axis][cell that looks] -> how it spreads over its line, for each head
    looks = [
        [torch.rand(batch, heads, *grid, length, generator=draw, dtype=torch.float64).softmax(-1) for length in grid]
        for _ in range(layers)
    ]
    attentions = []
    for layer in looks:
        for axis, length in enumerate(grid):
            # (batch, heads, *grid, length) -> (batch * other axes, heads, length that looks, length)
            lines = layer[axis].movedim(2 + axis, -2).movedim(1, -3)
            attentions.append(lines.reshape(-1, heads, length, length))
    maps = attention_received(attentions, grid)
    for axis, length in enumerate(grid):
        expected = torch.zeros(batch, *grid, dtype=torch.float64)
        for cell in torch.cartesian_prod(*map(torch.arange, grid)).tolist():
            for position in range(length):
                looker = [*cell[:axis], position, *cell[axis + 1 :]]
                for layer in looks:
                    given = layer[axis][(slice(None), slice(None), *looker, cell[axis])]
                    expected[(slice(None), *cell)] += given.sum(1) / (heads * layers)
        torch.testing.assert_close(maps[axis], expected)
        torch.testing.assert_close(maps[axis].mean(axis + 1), torch.ones_like(expected).mean(axis + 1))


def test_attention_received_fits_the_model():
    model = make_model()
    attentions = model(torch.rand(2, 1, 6, 10), output_attentions=True).attentions
    maps = attention_received(attentions, model.config.grid_shape)
    assert [tuple(received.shape) for received in maps] == [(2, 3, 5), (2, 3, 5)]


@pytest.mark.parametrize("overrides", [{}, {"reversible": True}, {"num_inducing_points": [None, 2]}], ids=str)
def test_silenced_cells_learn_nothing_of_each_other(overrides):
    model = make_model(**overrides)
    pixel_values = torch.rand(2, 1, 6, 10)
    changed = pixel_values.clone()
    changed[:, :, :2, :2] += 1  # the first patch

    def moved():
        """How far each cell of the last layer moves."""
        with torch.no_grad():
            grids = [model.axial(pixels).last_hidden_state for pixels in (pixel_values, changed)]
        return (grids[0] - grids[1]).abs().amax((0, -1))

    before = moved()
    assert (before > 1e-4).all()
    with attention_silenced(model):
        silenced = moved()
    assert silenced[0, 0] > 1e-4 and silenced.flatten()[1:].max() == 0
    assert torch.equal(moved(), before)


def test_baselines_see_only_what_they_may():
    class Rows:
        """Two grey values for four classes; the labels of the held-out rows are those of others."""

        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(200, 1, 2, generator=generator).numpy() * 255
        labels = (pictures[:, 0, 0] > 127).astype(int)
        held_out = torch.arange(200).numpy() % 5 == 4

    accuracies = baseline_accuracies(Rows)
    assert set(accuracies) == {"3 nearest neighbours", "logistic regression"} and min(accuracies.values()) > 0.85
    Rows.labels = Rows.labels.copy()
    Rows.labels[Rows.held_out] = 1 - Rows.labels[Rows.held_out]
    assert max(baseline_accuracies(Rows).values()) < 0.15


def scores_of(*counts):
    """Of pictures of which `counts[true][predicted]` are taken so."""
    pairs = [(true, taken) for true, row in enumerate(counts) for taken, count in enumerate(row) for _ in range(count)]
    labels, predictions = torch.tensor(pairs).unbind(1)
    return score(torch.full((len(pairs),), 0.5), predictions, labels, len(counts))


def test_a_table_names_each_class_and_says_where_there_is_nothing_to_tell():
    scores = scores_of((3, 1, 0), (1, 1, 0), (0, 0, 0))
    expected = [("0.7500", "0.7500", "0.7500", "4"), ("0.5000", "0.5000", "0.5000", "2"), ("-", "-", "-", "0")]
    expected.append(("0.6250", "0.6250", "0.6250", "6"))
    names = ["cat", "a|b\nc", "owl", "mean of the classes"]
    head, *lines = score_lines(scores, names[:3])
    assert head.split() == ["precision", "recall", "f1", "pictures", "class"]
    for line, cells, name in zip(lines, expected, ["cat", "a|b c", *names[2:]], strict=True):
        assert line.split(maxsplit=4) == [*cells, name]
    head, rule, *rows = score_table(scores, names[:3]).splitlines()
    assert head == "| class | precision | recall | f1 | pictures |" and rule == "| --- | ---: | ---: | ---: | ---: |"
    assert rows[1] == "| a\\|b c | 0.5000 | 0.5000 | 0.5000 | 2 |" and len(rows) == 4


def test_many_classes_are_told_in_the_card_alone():
    scores = scores_of(*torch.eye(60, dtype=torch.int64).tolist())
    names = [f"class {number}" for number in range(60)]
    assert len(score_lines(scores, names)) == 2 and score_lines(scores, names)[1].endswith("mean of the classes")
    assert len(score_table(scores, names).splitlines()) == 63


def test_confusion_is_drawn(tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **b: (figures.append(figure), savefig(figure, *a, **b)))
    draw_confusion(tmp_path / "confusion.png", scores_of((3, 1, 0), (1, 1, 0), (0, 0, 0)), ["$x$", "dog", "日本"])
    (panel,) = figures[0].axes
    texts = {text.get_position(): text.get_text() for text in panel.texts}  # (column, row)
    assert texts[1, 0] == texts[0, 1] == texts[1, 1] == "1" and texts[0, 0] == "3" and texts[2, 2] == "0"
    (image,) = panel.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["$x$", "dog", "日本"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted class", "true class")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize("number, errors", [(3, 1), (57, 20), (13, 0)])
def test_figure(tmp_path, number, errors):
    labels = torch.arange(number) % 4
    predictions = labels.clone()
    predictions[:errors] = (labels[:errors] + 1) % 4
    dataset = TensorDataset(torch.rand(number, 1, 6, 10), labels)
    draw_predictions(tmp_path / "figure.png", make_model(), dataset, predictions, labels, ["a", "b", "c", "d"])
    with Image.open(tmp_path / "figure.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert len(colours) > 50
    assert any(red > 200 and green < 60 and blue < 60 for _, (red, green, blue) in colours) == (errors > 0)


@pytest.mark.parametrize("size, overrides", [((10, 4), {}), ((6, 10), {"num_inducing_points": [None, 2]})], ids=str)
def test_figure_of_other_models(tmp_path, size, overrides):
    """Pictures of another size than the native one; a model with inducing points has no maps of cells to draw."""
    labels = torch.arange(5) % 4
    dataset = TensorDataset(torch.rand(5, 1, *size), labels)
    draw_predictions(tmp_path / "figure.png", make_model(**overrides), dataset, labels, labels, ["a", "b", "c", "d"])
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_names_of_classes_are_drawn_as_they_are(tmp_path, monkeypatch):
    names = {
        "Ba$$in": "Ba$$in",
        "$x^2$": "$x^2$",
        "\\frac{": "\\frac{",
        "a\nb  c": "a b c",
        "日本": "日本",  # which the font lacks
        "c" * 120: "c" * 12 + "…",
        "": "",
    }
    figures, savefig = [], Figure.savefig

    def recorded(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    labels = torch.arange(len(names))
    dataset = TensorDataset(torch.rand(len(names), 1, 6, 10), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_predictions(tmp_path / "figure.png", make_model(), dataset, labels, labels, list(names))
    (figure,) = figures
    titles = [panel.title for panel in figure.subfigs[0].axes[: len(names)]]
    assert [title.get_text() for title in titles] == list(names.values())
    assert not any(title.get_parse_math() for title in titles)


HARD_NAMES = ["it's", 'say "hi"', "both ' and \"", "a\\b", "back\\", "new\nline", "日本"]
HARD_NAMES += ["null", "2024", "1:30", "no", "a:b #c"]  # to YAML


@pytest.mark.parametrize("name", HARD_NAMES)
def test_a_name_is_text_in_a_model_card_and_in_the_lines_that_load_it(tmp_path, name):
    for line in loading_lines(name):
        (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
        assert ast.literal_eval(call.args[0]) == name
    data = SimpleNamespace(
        **{"name": name, "hub_id": "imagefolder", "license": None, "label_names": ["a", "b"]},
        **{"trained_on": f"the folder `{name}`", "measured_on": f"the folder `{name}`"},
    )
    (tmp_path / name).mkdir()
    write_model_card(tmp_path / name, data, {"this model": 0.5}, None)
    text = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    (model,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert model["name"] == name and model["results"][0]["dataset"]["name"] == name
    assert "\n".join(loading_lines(name)) in text


def test_model_card(tmp_path):
    class Data:
        name, hub_id, license, label_names = "cats, and others", "imagefolder", None, ["cat", "other"]
        trained_on, measured_on = "many cats", "few cats"

    paragraphs = ["The weights are the last.", "| class |\n| --- |\n| cat |"]
    write_model_card(tmp_path, Data, {"this model": 0.123456789, "another": 0.5}, "user/cats", paragraphs)
    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("cats, and others", "accuracy", 0.123457)
    assert card.data.license is None and card.data.model_name == "user/cats"
    assert "image_classification.py` on many cats.\n- Measured on few cats.\n" in card.text
    assert "| this model | 12.35% |\n| another | 50.00% |\n\nThe weights are the last.\n\n| class |\n" in card.text
    assert 'from_pretrained("user/cats", trust_remote_code=True)' in card.text and "revision=" in card.text
