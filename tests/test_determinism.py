"""Training calls no operator for which PyTorch has nothing deterministic on CUDA, and which refuses to run there."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_axial import (
    AxialConfig,
    AxialDecoderConfig,
    AxialForCausalImageModeling,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialImageTransformer,
)

# As the documentation of `torch.use_deterministic_algorithms` lists them, by their names in ATen.
REFUSED = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
    "put",
    "histc",
    "bincount",
    "median",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
}
REDUCTION = {"nll_loss2d_forward": 3}  # which is refused unless it is 0, none


class RefusedOperators(TorchDispatchMode):
    """Collects the names of the operators that would be refused."""

    def __init__(self):
        super().__init__()
        self.names, self.calls = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__.removesuffix("_")
        self.calls += 1
        if (
            name in REFUSED
            or (name in REDUCTION and args[REDUCTION[name]] != 0)
            or (name == "cumsum" and args[0].is_floating_point())
            or (name == "scatter_reduce" and "prod" in args)
        ):
            self.names.add(name)
        return function(*args, **kwargs or {})


def refused_in_training(step):
    with RefusedOperators() as operators:
        step().backward()
    assert operators.calls > 50
    return operators.names


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), "upsample_bilinear2d_backward"),
        (lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), "reflection_pad2d_backward"),
        (lambda x: torch.nn.functional.cross_entropy(x, torch.zeros(2, 4, 6).long()), "nll_loss2d_forward"),
        (lambda x: x.cumsum(-1), "cumsum"),
    ],
    ids=["interpolate", "pad", "cross_entropy", "cumsum"],
)
def test_operators_that_are_refused_are_found(step, name):
    with RefusedOperators() as operators:
        step(torch.ones(2, 3, 4, 6, requires_grad=True)).sum().backward()
    assert operators.names == {name}


def encoder(model_class, num_axes=2, labels=None, **options):
    """A step of such a model on pixels of another size than its own, some of which are masked."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "num_labels": 3, "num_channels": 1}
    torch.manual_seed(0)
    model = model_class(
        AxialConfig(image_size=[10, 6, 4][:num_axes], patch_size=[2] * num_axes, **sizes, **options)
    ).train()
    pixel_values = torch.randn(2, 1, *[8, 10, 4][:num_axes])
    mask = torch.rand(2, *[4, 5, 2][:num_axes]) > 0.2
    labels = None if labels is None else labels(pixel_values)
    arguments = {"attention_mask": mask} | ({} if labels is None else {"labels": labels})
    return lambda: model(pixel_values, **arguments).loss


def classes(pixel_values):
    return torch.arange(2)


def classes_of_pixels(pixel_values):
    return (pixel_values[:, 0] > 0).long()


STEPS = {
    "learned positions, two streams": lambda: encoder(
        AxialForImageClassification, labels=classes, reversible=True, attention_probs_dropout_prob=0.1
    ),
    "rotary and relative positions, convolutions": lambda: encoder(
        AxialForImageClassification,
        labels=classes,
        position_embedding="rotary+relative",
        feed_forward="convolution",
        periodic=[True, False],
    ),
    "windows": lambda: encoder(
        AxialForImageClassification, labels=classes, attention_window=1, position_embedding="relative"
    ),
    "sets": lambda: encoder(
        AxialForImageClassification, labels=classes, num_inducing_points=[None, 3], pooling="attention"
    ),
    "segmentation": lambda: encoder(
        AxialForSemanticSegmentation,
        labels=classes_of_pixels,
        dense_head="pyramid",
        class_weights=[1.0, 2.0, 3.0],
        dice_loss_weight=0.5,
    ),
    "segmentation of volumes": lambda: encoder(
        AxialForSemanticSegmentation, 3, classes_of_pixels, dense_head="pyramid"
    ),
    "numbers": lambda: encoder(
        AxialForDensePrediction,
        labels=torch.clone,
        num_target_channels=1,
        prediction_loss="quantile",
        quantiles=[0.1, 0.5],
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_training_takes_nothing_that_is_refused(name):
    assert refused_in_training(STEPS[name]()) == set()


def test_training_on_hidden_patches_takes_nothing_that_is_refused():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "num_channels": 1}
    model = AxialForMaskedImageModeling(AxialConfig(image_size=[10, 6], patch_size=2, **sizes)).train()
    hidden = torch.rand(2, 5, 3) > 0.5
    step = refused_in_training(lambda: model(torch.randn(2, 1, 10, 6), bool_masked_pos=hidden).loss)
    assert step == set()


def test_autoregressive_training_takes_nothing_that_is_refused():
    config = AxialDecoderConfig(
        image_size=[3, 5],
        num_channels=2,
        vocab_size=5,
        hidden_size=8,
        num_attention_heads=2,
        num_outer_layers=1,
        num_inner_layers=1,
        num_exterior_layers=1,
        num_classes=3,
    )
    model = AxialForCausalImageModeling(config).train()
    tokens = torch.randint(5, (2, 2, 3, 5))
    assert refused_in_training(lambda: model(tokens, class_labels=torch.arange(2)).loss) == set()


def test_the_image_transformer_takes_nothing_that_is_refused():
    transformer = AxialImageTransformer(dim=8, depth=1, heads=2, dim_index=1, axial_pos_emb_shape=(5, 6))
    assert refused_in_training(lambda: transformer(torch.randn(2, 8, 5, 6)).square().mean()) == set()
