"""Axial attention for grids of any number of axes: models, layers and their Auto-class registration."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .attention import AxialSelfAttention, axial_attention
from .configuration_axial import AxialConfig
from .image_processing_axial import AxialImageProcessor, read_image
from .modeling_axial import AxialModel, AxialPreTrainedModel
from .modeling_axial_heads import AxialForImageClassification
from .reversible import OneStream, RebuiltTwoStream, TwoStream
from .set_attention import AttentionPooling, InducedAxialAttention

__version__ = "0.1.0"

__all__ = [
    "AttentionPooling",
    "AxialConfig",
    "AxialForImageClassification",
    "AxialImageProcessor",
    "AxialModel",
    "AxialPreTrainedModel",
    "AxialSelfAttention",
    "InducedAxialAttention",
    "OneStream",
    "RebuiltTwoStream",
    "TwoStream",
    "axial_attention",
    "read_image",
]

AutoConfig.register("axial", AxialConfig)
AutoImageProcessor.register(AxialConfig, image_processor_classes={"pil": AxialImageProcessor})
AutoModel.register(AxialConfig, AxialModel)
AutoModelForImageClassification.register(AxialConfig, AxialForImageClassification)

# What `save_pretrained` writes next to the weights, so that checkpoints open with trust_remote_code=True.
AxialConfig.register_for_auto_class()
AxialModel.register_for_auto_class("AutoModel")
AxialForImageClassification.register_for_auto_class("AutoModelForImageClassification")
