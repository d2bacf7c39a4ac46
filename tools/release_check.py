"""Build what a release uploads, and see that it installs and works where there is no checkout.

    python tools/release_check.py                       # every Python from 3.10 to 3.14 that is found
    python tools/release_check.py --with-torch 3.11     # torch, of hundreds of megabytes, for that one alone

`dist/` gets the wheel, the source archive and the bill of materials. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
BILL = "rfdetr.cdx.json"
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TRIAL = """
import rfdetr, sys
from pathlib import Path
import numpy as np

assert Path(sys.prefix) in Path(rfdetr.__file__).parents, rfdetr.__file__
model = rfdetr.RFDETRNano(pretrain_weights=None, device="cpu")
found = model.predict(np.zeros((64, 96, 3), np.uint8), threshold=0.0)
assert len(found), found
print(f"rfdetr {rfdetr.__version__}: {len(found)} detections of random weights")
"""
LIGHT_TRIAL = "import rfdetr; print(f'rfdetr {rfdetr.__version__} imports; every module compiles')"


class Wrong(Exception):
    """What is wrong with the release."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a command.

    Raises:
        Wrong: it failed; with the end of what it said.
    """
    # A Python of another environment must not lend its modules.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Wrong(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}\n{end}")
    return done.stdout.strip()


def build() -> tuple[Path, Path]:
    """The wheel and the source archive, new in an empty `dist/`."""
    shutil.rmtree(DIST, ignore_errors=True)
    # From the archive, as installers do where a wheel does not fit: so both hold what is needed.
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    wheels, archives = list(DIST.glob("*.whl")), list(DIST.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        raise Wrong(f"dist/ holds {sorted(path.name for path in DIST.iterdir())}, not a wheel and an archive")
    return wheels[0], archives[0]


def package_files() -> set[str]:
    """Every file of the package in the checkout, as a wheel names it."""
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT / "src").as_posix() for path in files if ".egg-info" not in path.as_posix()}


def check_wheel(wheel: Path) -> str:
    """That it is for any Python and system, and holds the package and nothing else."""
    _, _, _, tags = parse_wheel_filename(wheel.name)
    if {str(tag) for tag in tags} != {"py3-none-any"}:
        raise Wrong(f"{wheel.name} is not for every Python 3 and system")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        entries = next(name for name in archive.namelist() if name.endswith("dist-info/entry_points.txt"))
        metadata = next(archive.read(name) for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        licences = [name for name in archive.namelist() if "dist-info/licenses/" in name]
        commands = archive.read(entries).decode()
    wanted = package_files()
    if held != wanted:
        raise Wrong(f"{wheel.name} lacks {sorted(wanted - held)} and has {sorted(held - wanted)} beyond the package")
    if "rfdetr = rfdetr.cli:main" not in commands or not licences:
        raise Wrong(f"{wheel.name} lacks the command rfdetr or its licence")
    known = Metadata.from_email(metadata, validate=True)
    readme = BytesParser().parsebytes(metadata).get_payload()
    if known.description_content_type != "text/markdown" or not str(readme).strip():
        raise Wrong(f"{wheel.name} does not carry the README")
    return f"{wheel.name}: {len(held)} files, metadata {known.metadata_version}, licence {known.license_expression}"


def check_archive(archive: Path) -> str:
    """That it holds the package and no tests."""
    with tarfile.open(archive) as content:
        names = {member.name.partition("/")[2] for member in content.getmembers() if member.isfile()}
    lacking = {f"src/{name}" for name in package_files()} - names
    beyond = {name for name in names if name.split("/")[0] not in ("src",)} - {
        *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"),
    }
    if lacking or beyond:
        raise Wrong(f"{archive.name} lacks {sorted(lacking)} and has {sorted(beyond)} beyond the package")
    return f"{archive.name}: {len(names)} files"


def check_licences() -> str:
    """That all of them are permitted, here where the checks run."""
    return run(sys.executable, ROOT / "tools" / "licences.py").splitlines()[-1]


def pythons() -> dict[str, Path]:
    """The newest Python of each supported version that is found: on PATH, of pyenv, of uv."""
    candidates = [shutil.which(f"python{version}") for version in VERSIONS]
    candidates += sorted(map(str, Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python")))
    if uv := shutil.which("uv"):
        listed = subprocess.run([uv, "python", "list", "--only-installed"], capture_output=True, text=True)
        candidates += [line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 1]
    found: dict[str, Path] = {}
    for path in [*candidates, sys.executable]:
        if path and (version := _version_of(path)) in VERSIONS:
            found.setdefault(version, Path(path))
    return dict(sorted(found.items(), key=lambda item: VERSIONS.index(item[0])))


def _version_of(path: str) -> str:
    """ "3.11" of a Python that runs; a shim of pyenv may be there without one behind it."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def environment_python(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(python: Path, wheel: Path, with_torch: bool) -> None:
    """Put the wheel into an environment, with what it needs or alone."""
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if not with_torch:
        run(*pip, "--no-deps", wheel)
        return
    # By itself first: a request with other names could bring another build.
    run(*pip, "-c", ROOT / "constraints.txt", "torch")
    run(*pip, "-c", ROOT / "constraints.txt", wheel)


def try_out(python: Path, with_torch: bool, folder: Path) -> str:
    """Use what is installed, from a folder that is not the checkout."""
    if not with_torch:
        package = run(python, "-c", "import rfdetr; print(rfdetr.__path__[0])", cwd=folder)
        run(python, "-m", "compileall", "-q", "-f", package, cwd=folder)
        return run(python, "-W", "error", "-c", LIGHT_TRIAL, cwd=folder)
    command = python.with_name("rfdetr.exe" if os.name == "nt" else "rfdetr")
    if "train" not in run(command, "--help", cwd=folder):
        raise Wrong("rfdetr --help does not list train")
    run(python, "-m", "pip", "check", cwd=folder)
    return run(python, "-c", TRIAL, cwd=folder)


def write_bill(python: Path) -> str:
    """The software bill of materials of an environment: what a plain install brings, in which versions."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    target = DIST / BILL
    options = ("--output-reproducible", "--of", "JSON", "--pyproject", ROOT / "pyproject.toml", "-o", target)
    run(tool, "environment", *options, python)
    text = target.read_text(encoding="utf-8")
    if '"name": "torch"' not in text or '"bomFormat": "CycloneDX"' not in text:
        raise Wrong(f"{BILL} does not list torch")
    return f"dist/{BILL}: {text.count('pkg:pypi/')} references to packages"


class Steps:
    """Goes through steps, also after one that failed, and counts those."""

    def __init__(self) -> None:
        self.wrong = 0

    def take(self, name: str, step: Callable[..., str], *given: Any) -> None:
        """Take a step, and print what it says."""
        try:
            print(f"{name}: {step(*given)}", flush=True)
        except Wrong as error:
            self.wrong += 1
            print(f"{name}: WRONG: {error}", flush=True)


def try_pythons(steps: Steps, wheel: Path, with_torch: list[str] | None) -> None:
    """Try the wheel with each Python; the first environment with torch is the one of the bill of materials."""
    found = pythons()
    print(f"Python found: {', '.join(found) or 'none'}; not found: {', '.join(v for v in VERSIONS if v not in found)}")
    whole = [version for version in found if with_torch is None or version in with_torch]
    for version, python in found.items():
        said = "" if version in whole else " (without torch and the other needs)"
        with tempfile.TemporaryDirectory(prefix="rfdetr_release_") as name:
            fresh = environment_python(Path(name) / "venv")
            steps.take(f"Python {version}{said}", try_python, python, Path(name), wheel, version in whole)
            if version in whole[:1]:
                steps.take("bill of materials", write_bill, fresh)
    if not whole:
        steps.take("Python", none_found, found)


def try_python(python: Path, folder: Path, wheel: Path, with_torch: bool) -> str:
    """Install the wheel into a new environment in a folder, and use it."""
    run(python, "-m", "venv", folder / "venv")
    fresh = environment_python(folder / "venv")
    install(fresh, wheel, with_torch)
    return try_out(fresh, with_torch, folder)


def none_found(found: dict[str, Path]) -> str:
    """Nothing was tried, which is no success."""
    raise Wrong(f"the wheel was tried whole with no Python; found are {', '.join(found) or 'none'}")


def main() -> int:
    """Build, then check what was built."""
    parser = argparse.ArgumentParser(description="Build a release and try it out.")
    parser.add_argument(
        "--with-torch",
        nargs="+",
        metavar="VERSION",
        choices=VERSIONS,
        help="install torch and try a prediction with these versions alone; the others import (default: all)",
    )
    options, steps = parser.parse_args(), Steps()
    try:
        wheel, archive = build()
    except Wrong as error:
        print(f"build: WRONG: {error}")
        return 1
    steps.take("wheel", check_wheel, wheel)
    steps.take("source archive", check_archive, archive)
    steps.take("licences", check_licences)
    try_pythons(steps, wheel, options.with_torch)
    print(f"{steps.wrong} steps went wrong" if steps.wrong else "ready to be released")
    return bool(steps.wrong)


if __name__ == "__main__":
    sys.exit(main())
