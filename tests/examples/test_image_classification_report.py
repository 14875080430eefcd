"""What the example tells about a model: attention maps, silenced attention, the figure, the model card."""

import ast
import warnings
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import TensorDataset

from examples.image_classification_report import (
    attention_received,
    attention_silenced,
    baseline_accuracies,
    draw_predictions,
    loading_lines,
    score_lines,
    score_table,
    wrapped,
    write_model_card,
)
from examples.image_classification_scores import score
from modeling_axial import AxialConfig, AxialForImageClassification


def make_model(num_labels=4, **overrides):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[6, 10],
        patch_size=2,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.5,
        num_labels=num_labels,
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


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(predictions, labels, names) -> ({title: part} of the figure, its title), for a small model and dataset."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **b: (figures.append(figure), savefig(figure, *a, **b)))

    def drawn(predictions, labels, names, model=None, size=(6, 10)):
        generator = torch.Generator().manual_seed(0)
        dataset = TensorDataset(torch.rand(len(labels), 1, *size, generator=generator), labels)
        scores = score(torch.zeros(len(labels)), predictions, labels, len(names))
        draw_predictions(tmp_path / "figure.png", model or make_model(num_labels=len(names)), dataset, scores, names)
        (figure,) = figures
        return {part.get_suptitle(): part for part in figure.subfigs}, figure.get_suptitle()

    return drawn


def pictures_in(part):
    """Those that a part of the figure shows, as bytes."""
    return [panel.images[0].get_array().tobytes() for panel in part.axes if panel.images]


@pytest.mark.parametrize("number, errors", [(3, 1), (57, 20), (13, 0), (4, 4)])
def test_each_picture_is_shown_once_below_the_accuracy(tmp_path, drawn, number, errors):
    labels = torch.arange(number) % 4
    predictions = labels.clone()
    predictions[:errors] = (labels[:errors] + 1) % 4
    parts, title = drawn(predictions, labels, ["a", "b", "c", "d"])
    assert title == f"accuracy {1 - errors / number:.2%} on {number} pictures"
    shown = {"recognised": (right := number - errors), "errors: predicted class above, true class below": errors}
    shown = {f"{min(16, count)} of {count} {what}": min(16, count) for what, count in shown.items() if count}
    assert list(parts)[: len(shown)] == list(shown) and "which class is taken for which" in parts
    pictures = [pictures_in(parts[title]) for title in shown]
    assert [len(part) for part in pictures] == list(shown.values())
    assert len(set(sum(pictures, []))) == min(16, right) + min(16, errors)
    with Image.open(tmp_path / "figure.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert any(red > 200 and green < 60 and blue < 60 for _, (red, green, blue) in colours) == (errors > 0)


def test_a_picture_has_its_classes_and_their_probabilities(drawn):
    labels, predictions = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])
    model = make_model(num_labels=3)
    parts, _ = drawn(predictions, labels, ["cat", "dog", "owl"], model)
    right, wrong = list(parts.values())[:2]
    pictures = torch.rand(3, 1, 6, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        percent = [[f"{share:.0%}" for share in of] for of in model(pictures).logits.softmax(-1).tolist()]
    assert [panel.get_title() for panel in right.axes[:2]] == [f"cat\n{percent[0][0]}", f"dog\n{percent[1][1]}"]
    assert (wrong.axes[0].get_title(), wrong.axes[0].get_xlabel()) == (f"cat\n{percent[2][0]}", f"owl\n{percent[2][2]}")


def test_confusion_is_drawn_from_three_classes_on(drawn):
    predictions, labels = (torch.tensor(numbers) for numbers in ([0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]))
    (panel,) = drawn(predictions, labels, ["$x$", "dog", "日本"])[0]["which class is taken for which"].axes
    texts = {text.get_position(): text.get_text() for text in panel.texts}  # (column, row)
    assert texts == {(0, 0): "3", (1, 0): "1", (0, 1): "1", (1, 1): "1"}
    assert panel.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["$x$", "dog", "日本"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.parametrize("number", [2, 40])
def test_confusion_of_two_classes_or_of_many(drawn, number):
    labels = torch.arange(number)
    parts, _ = drawn(labels, labels, [f"class {label}" for label in range(number)])
    part = parts.get("which class is taken for which")
    assert (part is None) == (number == 2)
    if part is not None:
        assert part.axes[0].images[0].get_array().shape == (40, 40) and not part.axes[0].texts


def test_attention_is_laid_over_the_picture_and_an_even_share_has_no_colour(drawn):
    labels = torch.arange(5) % 4
    parts, _ = drawn(labels, labels, list("abcd"))
    (part,) = [part for title, part in parts.items() if "attention" in title]
    panels = part.axes[:15]
    for panel in panels[5:]:
        under, over = panel.images
        assert tuple(under.get_extent()) == tuple(over.get_extent()) == (-0.5, 9.5, 5.5, -0.5)
        assert over.get_array().shape == (3, 5)
        assert over.norm(1) == 0.5 and over.norm(0) == 0  # in the middle of the colours, and at their end
        assert (over.get_alpha() > 0.01)[abs(over.get_array() - 1) > 0.1].all()


@pytest.mark.parametrize("size, overrides", [((10, 4), {}), ((6, 10), {"num_inducing_points": [None, 2]})], ids=str)
def test_figure_of_other_models(drawn, size, overrides):
    """Pictures of another size than the native one; a model with inducing points has no maps of cells to draw."""
    labels = torch.arange(5) % 4
    parts, _ = drawn(labels, labels, list("abcd"), make_model(**overrides), size)
    assert any("attention" in title for title in parts) == (not overrides)


def test_names_of_classes_are_drawn_as_they_are(drawn):
    names = {
        "Ba$$in": "Ba$$in",
        "$x^2$": "$x^2$",
        "\\frac{": "\\frac{",
        "a\nb  c": "a b c",
        "日本": "日本",  # which the font lacks
        "c" * 120: "c" * 15 + "\n" + "c" * 14 + "…",
        "": "",
    }
    labels = torch.arange(len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts, _ = drawn(labels, labels, list(names))
    titles = [panel.title for panel in next(iter(parts.values())).axes[: len(names)]]
    assert [title.get_text().rpartition("\n")[0] for title in titles] == list(names.values())
    assert not any(title.get_parse_math() for title in titles)


LONG_NAMES = [
    "American Staffordshire terrier, Staffordshire terrier, American pit bull terrier",
    "great white shark, white shark, man-eater, man-eating shark",
    "soft-coated wheaten terrier",
    "German short-haired pointer",
    "black-and-tan coonhound",
    "West Highland white terrier",
    "flat-coated retriever",
    "Chesapeake Bay retriever",
    "three-toed sloth, ai, Bradypus tridactylus",
    "African crocodile, Nile crocodile, Crocodylus niloticus",
    "sulphur-crested cockatoo, Kakatoe galerita",
    "hen-of-the-woods, hen of the woods, Polyporus frondosus",
    "projectile, missile",
    "cash machine, cash dispenser, automated teller machine",
    "entertainment center",
    "internationalization",
    "electric locomotive",
    "crossword puzzle, crossword",
    "tench, Tinca tinca",
    "ox",
]


def test_long_names_stand_in_two_lines_and_touch_nothing(drawn):
    assert wrapped(LONG_NAMES[0]) == "American\nStaffordshire…" and wrapped(LONG_NAMES[-1]) == "ox"
    labels = torch.arange(40) % 20
    predictions = torch.where(torch.arange(40) < 20, labels, (labels + 1) % 20)
    parts, _ = drawn(predictions, labels, LONG_NAMES)
    figure = next(iter(parts.values())).figure
    renderer = FigureCanvasAgg(figure.get_figure(root=True)).get_renderer()
    texts = [part._suptitle for part in parts.values()]
    for panel in sum((part.axes for part in list(parts.values())[:2]), []):
        texts += [panel.title, panel.xaxis.label]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    assert len(boxes) == len(parts) + 16 + 2 * 16
    overlaps = [(a, b) for number, a in enumerate(boxes) for b in boxes[:number] if a.overlaps(b)]
    assert not overlaps


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
