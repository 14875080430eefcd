"""transformers' own lint of model code finds nothing that has no reason."""

import json
import subprocess
import sys

from tests.conftest import ROOT

# Rule -> why what it finds stays.
REASONS = {
    "TRF010": "StrictConfig is the common base of the configs and is never made itself; they are @strict.",
    "TRF016": "AxialVideoProcessor reads these flags as those of the call, which its own stand in for.",
    "TRF028": "The header is that of transformers' own files under the Apache license; LICENSE holds that of these.",
    "TRF041": "A CODEPATH note names the published checkpoints of each branch; these are choices that every user has.",
    "TRF057": "Docstrings are written out: @auto_docstring would repeat the arguments of all configs and processors.",
}


FLAT_FILES = sorted(path for path in (ROOT / "modeling_axial").glob("*.py") if path.name != "__init__.py")


def findings(folder, *files):
    """(rule, message) of everything that any rule, on by default or not, finds in the files."""
    report = folder / "report.json"
    options = ["--no-cache", "--no-progress", "--enable-all-trf-rules", f"--output-json={report}"]
    done = subprocess.run([sys.executable, "-m", "mlinter", *options, *files], capture_output=True, text=True)
    assert report.is_file(), done.stdout + done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))["findings"]
    return [(item["rule"], f"{item['path']}:{item['line']}: {item['message']}") for item in found]


def test_every_finding_has_a_reason(tmp_path):
    found = findings(tmp_path, *FLAT_FILES)
    assert not [message for rule, message in found if rule not in REASONS]
    assert set(REASONS) == {rule for rule, _ in found}, "a reason that is no longer needed"


def test_a_planted_fault_is_found(tmp_path):
    planted = tmp_path / "modeling_planted.py"
    planted.write_text("assert True\n")
    assert "TRF027" in [rule for rule, _ in findings(tmp_path, planted)]
