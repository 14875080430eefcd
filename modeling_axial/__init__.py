"""Axial attention for grids of any number of axes: models, layers and their Auto-class registration."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageToImage,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    AutoModelForVideoClassification,
)

from .attention import AxialSelfAttention, axial_attention
from .configuration_axial import AxialConfig
from .configuration_axial_decoder import AxialDecoderConfig
from .configuration_image_transformer import AxialImageTransformerConfig
from .grid_processing_axial import AxialGridProcessor
from .image_processing_axial import AxialImageProcessor, read_image
from .image_transformer import (
    AxialAttention,
    AxialImageTransformer,
    AxialImageTransformerModel,
    AxialPositionalEmbedding,
    InducedSetAttention,
    SelfAttention,
)
from .layer_context import LayerContext
from .modeling_axial import AxialModel, AxialPreTrainedModel
from .modeling_axial_decoder import AxialForCausalImageModeling
from .modeling_axial_dense import AxialForDensePrediction, AxialForMaskedImageModeling, AxialForSemanticSegmentation
from .modeling_axial_heads import AxialBackbone, AxialForImageClassification, AxialForVideoClassification
from .pooling import AttentionPooling
from .reversible import OneStream, RebuiltTwoStream, TwoStream
from .set_attention import InducedAxialAttention
from .video_processing_axial import AxialVideoProcessor

__version__ = "0.2.0"  # pyproject.toml reads it here

__all__ = [
    "AttentionPooling",
    "AxialAttention",
    "AxialBackbone",
    "AxialConfig",
    "AxialDecoderConfig",
    "AxialForCausalImageModeling",
    "AxialForDensePrediction",
    "AxialForImageClassification",
    "AxialForMaskedImageModeling",
    "AxialForSemanticSegmentation",
    "AxialForVideoClassification",
    "AxialGridProcessor",
    "AxialImageProcessor",
    "AxialImageTransformer",
    "AxialImageTransformerConfig",
    "AxialImageTransformerModel",
    "AxialModel",
    "AxialPositionalEmbedding",
    "AxialPreTrainedModel",
    "AxialSelfAttention",
    "AxialVideoProcessor",
    "InducedAxialAttention",
    "InducedSetAttention",
    "LayerContext",
    "OneStream",
    "RebuiltTwoStream",
    "SelfAttention",
    "TwoStream",
    "axial_attention",
    "read_image",
]

AutoBackbone.register(AxialConfig, AxialBackbone)
AutoConfig.register("axial", AxialConfig)
AutoConfig.register("axial_decoder", AxialDecoderConfig)
AutoConfig.register("axial_image_transformer", AxialImageTransformerConfig)
AutoImageProcessor.register(AxialConfig, image_processor_classes={"pil": AxialImageProcessor})
# A configuration has one processor; those of other data are found by the name that their file holds.
AutoImageProcessor.register(AxialGridProcessor, image_processor_classes={"pil": AxialGridProcessor})
AutoImageProcessor.register(AxialVideoProcessor, image_processor_classes={"pil": AxialVideoProcessor})
AutoModel.register(AxialConfig, AxialModel)
AutoModel.register(AxialDecoderConfig, AxialForCausalImageModeling)
AutoModel.register(AxialImageTransformerConfig, AxialImageTransformerModel)
AutoModelForCausalLM.register(AxialDecoderConfig, AxialForCausalImageModeling)
AutoModelForImageClassification.register(AxialConfig, AxialForImageClassification)
AutoModelForImageToImage.register(AxialConfig, AxialForDensePrediction)
AutoModelForMaskedImageModeling.register(AxialConfig, AxialForMaskedImageModeling)
AutoModelForSemanticSegmentation.register(AxialConfig, AxialForSemanticSegmentation)
AutoModelForVideoClassification.register(AxialConfig, AxialForVideoClassification)

# What `save_pretrained` writes next to the weights, so that checkpoints open with trust_remote_code=True.
AxialConfig.register_for_auto_class()
AxialDecoderConfig.register_for_auto_class()
AxialImageTransformerConfig.register_for_auto_class()
AxialBackbone.register_for_auto_class("AutoBackbone")
AxialModel.register_for_auto_class("AutoModel")
AxialImageTransformerModel.register_for_auto_class("AutoModel")
AxialForCausalImageModeling.register_for_auto_class("AutoModelForCausalLM")
AxialForImageClassification.register_for_auto_class("AutoModelForImageClassification")
AxialForDensePrediction.register_for_auto_class("AutoModelForImageToImage")
AxialForMaskedImageModeling.register_for_auto_class("AutoModelForMaskedImageModeling")
AxialForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
AxialForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")
