"""Checkpoints that carry the code of their model, so that they open where this package was never installed."""

import inspect
import os
import shutil
from pathlib import Path
from typing import ClassVar

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_utils import PreTrainedModel


class CodeCarryingModel(PreTrainedModel):
    """A `PreTrainedModel` whose checkpoints open with every class of `code_auto_map`, whichever of them saved it.

    The base class of a model type sets `code_auto_map`. With a checkpoint travel the file of that class and all files
    that transformers reaches from it by following relative imports.
    """

    # Auto class -> "<file>.<class>", for every class that a checkpoint of this model type opens with.
    code_auto_map: ClassVar[dict[str, str]]

    def post_init(self) -> None:
        super().post_init()
        self.add_model_tags("axial-attention")  # of the model card; in a list of its own, which pushing extends

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs) -> None:
        """As in transformers, with the whole `code_auto_map` and all files of the model."""
        if self.is_remote_code():
            self.config.auto_map = dict(self.code_auto_map)
            # FSDP2 turns the instance into a class that lives in torch, whose files must not travel instead of ours.
            if type(self).__module__.startswith("torch."):
                type(self)._auto_class = None
            if self.should_save_on_this_rank(is_main_process):
                os.makedirs(save_directory, exist_ok=True)
                base_class = next(cls for cls in type(self).__mro__ if "code_auto_map" in vars(cls))
                file = inspect.getfile(base_class)
                for path in {file, *get_relative_import_files(file)}:
                    shutil.copyfile(path, Path(save_directory) / Path(path).name)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
