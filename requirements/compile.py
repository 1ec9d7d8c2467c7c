"""Write the locks with hashes, from pyproject.toml and the versions in requirements.lock.

`make lock` runs it. uv resolves and gives the hashes that the package index serves.

- `linux-cuda.lock`: what unitrain needs at run time, with PyPI's torch, which has CUDA.
- `linux-cpu.lock`: the same with torch's CPU wheel.
- `linux-cpu-dev.lock`: that and the extras `examples` and `dev`, as continuous integration installs them.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ">=3.11,<3.14"
PLATFORM = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.14'"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CPU = {
    "2.13.0": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # cp311
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",  # cp312
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",  # cp313
    )
}
"""SHA-256 of torch's CPU wheels for Linux x86-64 (manylinux_2_28), by version.

PyPI has no CPU wheel for Linux, so a new version of torch needs an entry of its own here, from the pages of CPU_INDEX.
The first is computed from the wheel; the other two are quoted from locks of public projects that use CPU_INDEX, and
were not compared with its pages. A wrong one refuses to install.
"""
CUDA_ONLY = re.compile(r"(nvidia|cuda)-|triton==")
HEADER = """\
# Written by `make lock`: {what}.
# Linux x86-64, CPython 3.11 to 3.13. Install: pip install --require-hashes -r requirements/{name}
"""


def resolve(*extras: str) -> list[str]:
    """Return one entry a package: the version and its hashes, sorted by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    with tempfile.TemporaryDirectory() as folder:
        # uv reads the platforms to resolve for from the pyproject.toml of the folder that it runs in.
        Path(folder, "pyproject.toml").write_text(
            f'[project]\nname = "lock"\nversion = "0"\nrequires-python = "{PYTHONS}"\n'
            f"dependencies = {[text for group in groups for text in group]}\n"
            f'[tool.uv]\nenvironments = ["{PLATFORM}"]\n'
        )
        command = ["uv", "pip", "compile", "pyproject.toml", "--quiet", "--universal", "--generate-hashes"]
        command += ["--python-version", "3.11", "--no-header", "--no-annotate"]
        done = subprocess.run(
            [*command, "--constraints", ROOT / "requirements.lock"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"uv can't resolve the lock: {done.stderr}")
    # Every entry has the marker of the only platform.
    text = re.sub(r" ; .*? \\$", r" \\", done.stdout, flags=re.MULTILINE)
    return re.findall(r"^\S.*(?:\n .*)*", text, re.MULTILINE)


def for_cpu(entries: list[str]) -> list[str]:
    """Return the entries without CUDA's packages, and with torch's CPU wheel."""
    torch = next(entry for entry in entries if entry.startswith("torch=="))
    version = torch.split()[0].removeprefix("torch==")
    if version not in TORCH_CPU:
        sys.exit(
            f"requirements/compile.py: TORCH_CPU lacks torch {version}; add the hashes from {CPU_INDEX}/torch/"
        )
    hashes = [f"    --hash=sha256:{digest}" for digest in TORCH_CPU[version]]
    wheel = " \\\n".join([f"torch=={version}+cpu", *hashes])
    return [wheel if entry is torch else entry for entry in entries if not CUDA_ONLY.match(entry)]


def write(name: str, what: str, entries: list[str], index: str | None = None) -> None:
    """Write one lock."""
    lines = [f"--extra-index-url {index}"] if index else []
    text = HEADER.format(what=what, name=name) + "\n".join([*lines, *entries]) + "\n"
    (ROOT / "requirements" / name).write_text(text)


def main() -> None:
    """Write all locks."""
    runtime, development = resolve(), resolve("examples", "dev")
    write("linux-cuda.lock", "run time, with CUDA", runtime)
    write("linux-cpu.lock", "run time, without CUDA", for_cpu(runtime), CPU_INDEX)
    write(
        "linux-cpu-dev.lock",
        "run time, examples and development, without CUDA",
        for_cpu(development),
        CPU_INDEX,
    )


if __name__ == "__main__":
    main()
