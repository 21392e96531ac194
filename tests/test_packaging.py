"""The wheel and the checkout: what is in them, and that ours is imported whatever lies beside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import patchsieve

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pipeline", "ranker", "jobs")
TINY = ROOT / "pipeline" / "teacher" / "tiny"

WHERE = "import patchsieve.pipeline.errors as errors; print(errors.__file__)"
# A worker tells which of ours it imports, and which `pipeline` it would have got by the bare name.
RAY_DRIVER = """
import importlib.util, json, os
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)

@ray.remote
def modules():
    import patchsieve.jobs, patchsieve.pipeline.errors, patchsieve.ranker
    ours = [patchsieve.pipeline.errors.__file__, patchsieve.jobs.__file__, patchsieve.ranker.__file__]
    return ours, importlib.util.find_spec("pipeline").origin, os.getpid()

ours, bare, pid = ray.get(modules.remote())
assert pid != os.getpid()
print(json.dumps([ours, bare]))
ray.shutdown()
"""


def run(*command: object, cwd: Path, path: Path) -> str:
    """Standard output of a command that must succeed, with `path` as the only PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what this checkout installs: nothing writes into the original, no stale build is found."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("patchsieve", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the setuptools that is installed: without network and build isolation."""
    source = tmp_path_factory.mktemp("source") / "patchsieve"
    shutil.copytree(checkout, source)
    target = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", target, source, cwd=target, path=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed wheel, beside another distribution that has our folders' names at its top level."""
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder)
    run(*pip, wheel, cwd=folder, path=folder)
    write_strangers(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's directory that has its own `pipeline/`, `ranker/` and `jobs/`."""
    write_strangers(tmp_path)
    return tmp_path


def write_strangers(folder: Path) -> None:
    """Packages with our folders' names whose every module fails when it is imported."""
    for name in FOLDERS:
        for module in ("__init__", "errors", "score", "cli"):
            file = folder / name / f"{module}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text("raise RuntimeError('a stranger was imported')\n")


def test_wheel_has_one_top_level_name_and_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "patchsieve",
        f"patchsieve-{patchsieve.__version__}.dist-info",
    }
    ours = {f"patchsieve/{f.relative_to(ROOT).as_posix()}" for d in FOLDERS for f in (ROOT / d).rglob("*.py")}
    ours |= {f"patchsieve/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    assert {name for name in names if name.endswith((".py", ".typed"))} == ours


@pytest.mark.skipif(not TINY.exists(), reason="no bundled teacher yet")
def test_wheel_has_the_bundled_teacher(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {f.relative_to(ROOT) for f in TINY.iterdir() if f.suffix in {".safetensors", ".json", ".md"}}
    assert {f.suffix for f in needed} == {".safetensors", ".json", ".md"}
    assert {f"patchsieve/{f.as_posix()}" for f in needed} <= names


def test_wheel_has_the_recipes(wheel: Path) -> None:
    recipes = {f"patchsieve/{f.relative_to(ROOT).as_posix()}" for f in ROOT.glob("ranker/recipes/*.yaml")}
    assert "patchsieve/ranker/recipes/published.yaml" in recipes
    assert recipes <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_in_a_directory_of_strangers(site: Path, elsewhere: Path) -> None:
    imported = Path(run(sys.executable, "-c", WHERE, cwd=elsewhere, path=site).strip())
    assert imported == site / "patchsieve" / "pipeline" / "errors.py"
    for command in ((site / "bin" / "patchsieve",), (sys.executable, "-m", "patchsieve")):
        assert "patchsieve COMMAND" in run(*command, "--help", cwd=elsewhere, path=site)


def test_checkout_in_a_directory_of_strangers(checkout: Path, elsewhere: Path) -> None:
    imported = Path(run(sys.executable, "-c", WHERE, cwd=elsewhere, path=checkout).strip())
    assert imported == checkout / "pipeline" / "errors.py"
    module = (sys.executable, "-m", "patchsieve", "--help")
    assert "patchsieve COMMAND" in run(*module, cwd=elsewhere, path=checkout)


def test_jobs_run_as_modules_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    assert "--mask-ratio" in run(sys.executable, "-m", "jobs.score", "--help", cwd=checkout, path=tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_ray_workers_import_ours(installed: bool, request: pytest.FixtureRequest, elsewhere: Path) -> None:
    path = request.getfixturevalue("site" if installed else "checkout")
    # Ray puts the directory of the driver's script first on every worker's path.
    (elsewhere / "drive.py").write_text(RAY_DRIVER)
    output = run(sys.executable, "drive.py", cwd=elsewhere, path=path)
    ours, bare = json.loads(output.splitlines()[-1])
    root = path / "patchsieve" if installed else path
    assert ours == [
        str(root / name) for name in ("pipeline/errors.py", "jobs/__init__.py", "ranker/__init__.py")
    ]
    assert bare == str(elsewhere / "pipeline" / "__init__.py"), (
        "the stranger was in reach, or this shows nothing"
    )


def test_only_a_checkout_looks_beside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "patchsieve"
    package.mkdir()
    assert patchsieve._checkout_of(package) is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert patchsieve._checkout_of(package) is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "patchsieve"\n')
    assert patchsieve._checkout_of(package) == tmp_path
    (package / "pipeline").mkdir()
    assert patchsieve._checkout_of(package) is None


def test_public_api() -> None:
    assert {name for name in dir(patchsieve) if not name.startswith("_")} == set(patchsieve.__all__) - {
        "__version__"
    }
    assert all(getattr(patchsieve, name) is not None for name in patchsieve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_teachers'"):
        patchsieve.load_teachers  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import patchsieve; dir(patchsieve)",
        "import patchsieve.jobs.cli",
        "from patchsieve.jobs.cli import main\nsys.argv = ['patchsieve', '--help']\nmain()",
        "from patchsieve.jobs.cli import main\nsys.argv = ['patchsieve', '--version']\nmain()",
    ],
)
def test_light_imports(code: str, tmp_path: Path) -> None:
    heavy = "print(sorted({'torch', 'torchvision', 'timm', 'ray', 'pyarrow'} & set(sys.modules)))"
    output = run(sys.executable, "-c", f"import sys\n{code}\n{heavy}", cwd=tmp_path, path=ROOT)
    assert output.splitlines()[-1] == "[]"
