"""The examples are scripts, which find the modules beside them by themselves; imported from here they need help."""

import sys

from tests.conftest import ROOT

sys.path += [str(ROOT / "examples"), str(ROOT / "examples" / "benchmarks")]
