"""The files for a package index: `python -m tests.distributions https://github.com/OWNER/NAME`.

An index shows README.md away from this repository, as it stands in the distributions. In these its links and pictures
lead to the repository at the tag of the version, and the lines for the Hub at its top are left out. The address stands
in their pyproject.toml, too. All else is what git holds. The folder `dist` is written anew; nothing is uploaded.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"  # what pip calls


def version() -> str:
    """`modeling_axial.__version__`, as setuptools reads it: from the text, without an import."""
    statements = ast.parse((ROOT / "modeling_axial" / "__init__.py").read_text(encoding="utf-8")).body
    return next(
        ast.literal_eval(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__"
    )


def tracked_files() -> set[str]:
    """The files that git holds, and that are there."""
    # Whoever may read the files may list them, also where they are another's.
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def shown_elsewhere(readme: str, address: str, tag: str) -> str:
    """README.md as it is shown away from the repository at `address`: without front matter, all links absolute."""

    def absolute(link: re.Match) -> str:
        picture, label, target = link.groups()
        if urlsplit(target).scheme or target.startswith("#"):
            return link[0]
        return f"{picture}[{label}]({address}/{'raw' if picture else 'blob'}/{tag}/{target})"

    text = re.sub(r"\A---\n.*?\n---\n+", "", readme, flags=re.DOTALL)
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", absolute, text)


def copy_for_index(folder: Path, address: str) -> None:
    """Copies what git holds into `folder`, with what an index shows changed as said above."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    readme, project = folder / "README.md", folder / "pyproject.toml"
    text = shown_elsewhere(readme.read_text(encoding="utf-8"), address, f"v{version()}")
    readme.write_text(text, encoding="utf-8")
    urls = f'[project.urls]\nRepository = "{address}"\n\n[project.optional-dependencies]\n'
    described = project.read_text(encoding="utf-8").replace("[project.optional-dependencies]\n", urls, 1)
    project.write_text(described, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the repository, where its files stand below /blob and its pictures at /raw")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder to write, anew")
    options = parser.parse_args(arguments)
    address = options.address.rstrip("/")
    if urlsplit(address).scheme != "https":
        parser.error(f"the address must begin with https://, as an index shows no other pictures; got {address!r}")
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as copy:
        copy_for_index(Path(copy), address)
        for kind in ("sdist", "wheel"):
            subprocess.run(
                [sys.executable, "-c", BUILD.format(kind), str(output)], cwd=copy, check=True, stdout=subprocess.DEVNULL
            )
    print(*sorted(os.listdir(output)), sep="\n")


if __name__ == "__main__":
    main()
