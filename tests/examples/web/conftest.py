"""The graphs of the page, exported once for all tests and processes."""

import os
import sys

import pytest
from filelock import FileLock

from tests.conftest import ROOT

sys.path.append(str(ROOT / "examples" / "web"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The folder of the five graphs."""
    from examples.web.export_models import export_models, open_models  # slow to import

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # with the other workers
    folder = shared / "exported"
    with FileLock(shared / "exported.lock"):
        if not (folder / "done").exists():
            export_models(*open_models(), folder)
            (folder / "done").touch()
    return folder
