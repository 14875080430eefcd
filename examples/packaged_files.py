"""Data that are part of packages: files that are found without importing the package, and that are the ones we know."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """
    A package by its name in the package index, with the name of its module, and the extra that installs it in the
    `version` whose files we know.
    """

    name: str
    version: str
    module: str
    extra: str

    def file(self, path: str, sha256: str) -> Path:
        """
        The file of the installed package.

        Raises:
            `ModuleNotFoundError`: if it is not installed.
            `ValueError`: if the file is another one than in the `version`.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(
                f"the data are part of {self.name}: pip install 'modeling-axial[{self.extra}]'", name=self.module
            )
        file = Path(spec.submodule_search_locations[0]) / path
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        if found != sha256:
            raise ValueError(
                f"{file} is not that of {self.name} {self.version}, which has the SHA-256 {sha256}, got {found}: "
                f"pip install {self.name}=={self.version}"
            )
        return file
