"""The wheel and the checkout: what is in them, and that ours is imported whatever lies beside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import patchsieve
from tests.helpers.checkout import ROOT
from tests.project import editors

FOLDERS = ("pipeline", "ranker", "jobs")
BUNDLED = (ROOT / "pipeline" / "teacher" / "tiny", ROOT / "ranker" / "tiny")

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
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built by the setuptools that is installed."""
    source = tmp_path_factory.mktemp("source") / "patchsieve"
    shutil.copytree(checkout, source, symlinks=True)
    target = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, target, cwd=source, path=target)
    (built,) = target.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the setuptools that is installed: without network, as pip asks it to."""
    source = tmp_path_factory.mktemp("source") / "patchsieve"
    shutil.copytree(checkout, source, symlinks=True)
    target = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, target, cwd=source, path=target)
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


def test_the_source_distribution_has_what_the_wheel_has(wheel: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2] for m in archive if m.isfile()}
    code = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("patchsieve/")}
    assert {name for name in members if name.startswith("patchsieve/")} == code
    assert not {name.split("/")[0] for name in members} & set(FOLDERS), "each file once"


@pytest.mark.parametrize("folder", BUNDLED, ids=["teacher", "ranker"])
def test_wheel_has_what_is_bundled(folder: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {f.relative_to(ROOT) for f in folder.iterdir() if f.suffix in {".safetensors", ".json", ".md"}}
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
    assert imported == checkout / "patchsieve" / "pipeline" / "errors.py"
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
    files = ("pipeline/errors.py", "jobs/__init__.py", "ranker/__init__.py")
    assert ours == [str(path / "patchsieve" / name) for name in files]
    assert bare == str(elsewhere / "pipeline" / "__init__.py"), (
        "the stranger was in reach, or this shows nothing"
    )


@pytest.mark.parametrize("how", ["text files", "nothing"])
def test_a_checkout_without_links_says_so_and_make_mends_it(how: str, checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True)
    for name in FOLDERS:
        (copy / "patchsieve" / name).unlink()
        if how == "text files":  # as unzip or git write a link where the system has none
            (copy / "patchsieve" / name).write_text(f"../{name}")
    module = (sys.executable, "-m", "patchsieve", "--help")
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    told = subprocess.run(module, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "`make install` makes the links" in told.stderr.splitlines()[-1]
    run("make", "links", cwd=copy, path=copy)
    assert [os.readlink(copy / "patchsieve" / name) for name in FOLDERS] == [f"../{name}" for name in FOLDERS]
    assert "patchsieve COMMAND" in run(*module, cwd=tmp_path, path=copy)


def test_editors_find_imports_of_the_installed_package_and_know_its_names(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import patchsieve\n"
        "from patchsieve.jobs.cli import main\n"
        "from patchsieve.pipeline.storage import join\n"
        "from patchsieve.ranker.select.online import keep_topk\n"
        "patchsieve.load_teacher\n"
        "patchsieve.load_teachr\n"
        "import patchsieve.pipeline.storag\n"
    )
    found = editors.diagnostics(tmp_path, finds=site)
    assert [line for line, _ in found] == [6, 7]
    assert '"load_teachr" is not a known attribute of module "patchsieve"' in found[0][1]
    assert '"patchsieve.pipeline.storag" could not be resolved' in found[1][1]


def test_public_api() -> None:
    assert {name for name in dir(patchsieve) if not name.startswith("_")} == set(patchsieve.__all__) - {
        "__version__"
    }
    assert all(getattr(patchsieve, name) is not None for name in patchsieve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_teachers'"):
        getattr(patchsieve, "load_teachers")  # noqa: B009 (a type checker knows that there is none)


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
