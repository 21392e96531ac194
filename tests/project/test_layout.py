"""The layout of the code, read off syntax trees; tests/project/test_layout_rules.py shows that each rule bites.

Which room may import from which is in tests/project/test_floors.py.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
import tomllib
from collections.abc import Callable

from tests.helpers.checkout import ROOT
from tests.project import layout
from tests.project.files import (
    PACKAGES,
    files_with,
    imported_file,
    libraries,
    loaded_at_import,
    python_files,
    room_of,
    sources,
    text_of,
    tree_of,
)

# Rooms whose names are imported from the room itself; the others are empty.
DOORS = {"pipeline/storage/__init__.py", "pipeline/pruned/__init__.py"}
STORAGE = "pipeline/storage"
# What runs on a machine that a run is started from, and not on every GPU machine.
DRIVER_ROOMS = {
    "pipeline/runs",
    "pipeline/options",
    "pipeline/cluster",
    "pipeline/pack",
    "pipeline/pretrain",
    "pipeline/schedule",
    "pipeline/score_on_ray",
}
DRIVER_FILES = {f"pipeline/score/{name}.py" for name in ("config", "request", "estimate")}
# Importing these or any job loads nothing heavy, so that --help answers at once.
LIGHT_FILES = [
    "patchsieve/__init__.py",
    "pipeline/row_config.py",
    "pipeline/score/config.py",
    "pipeline/pack/config.py",
    "pipeline/pictures/config.py",
    "pipeline/pretrain/config.py",
    "pipeline/schedule/config.py",
    "ranker/train/config.py",
    "ranker/evaluate/config.py",
    "ranker/prune/config.py",
    "ranker/prove/config.py",
    "ranker/verify/config.py",
    "ranker/gallery/config.py",
    "ranker/report/config.py",
]
# What a score run's own process does without: checking a teacher and asking for actors takes no model and no decoder.
LIGHT_DRIVERS = ["pipeline/score/request.py", "pipeline/score_on_ray/run.py"]
MODEL_LIBRARIES = {"timm", "torchvision"}
HEAVY_LIBRARIES = {"torch", "torchvision", "timm", "ray", "webdataset"}
# The names computed here are those of our own modules.
COMPUTED_IMPORT_FILES = {"patchsieve/__init__.py", "jobs/cli.py"}
# What a bare GPU machine has and what that brings along: the pipeline needs no more, its Ray files aside.
SCORING_LIBRARIES = {
    *("torch", "torchvision", "timm", "pyarrow", "fsspec"),
    *("numpy", "PIL", "safetensors", "yaml", "huggingface_hub"),
}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "huggingface_hub": "timm"}

PRIVATE_RAY_FILE = "pipeline/cluster/private_api.py"

MAX_LINES = 400
MAX_JOB_LINES = 80
MEDIAN_LINES = (110, 150)
"""A file is one idea: neither a fragment nor a hall."""


def broken(rule: Callable[[str], object], files: list[str]) -> dict[str, object]:
    """What the rule finds, by file; files without findings are left out."""
    return {file: found for file in files if (found := rule(file))}


def refused_imports(file: str, tree: ast.Module) -> list[str]:
    """Imports of ours under names that a checkout alone knows, through the public API, or past storage's door."""
    found = []
    for used in layout.imports(tree):
        whole = f"{used.module}.{used.name}" if used.name else used.module
        if used.module.split(".")[0] in {*PACKAGES, "", "tests", "benchmarks"}:
            found.append(f"line {used.line}: {used.module} is no name of ours, which begin with patchsieve")
        elif imported_file(used) == "patchsieve/__init__.py" and whole != "patchsieve.__version__":
            found.append(f"line {used.line}: {whole} is for users; name the module that has it")
        elif re.match(r"patchsieve\.pipeline\.storage\.\w+\.", f"{whole}.") and (
            room_of(file) != STORAGE and used.module != "patchsieve.pipeline.storage"
        ):
            found.append(f"line {used.line}: {used.module} is behind storage's door")
    return found


def file_systems(tree: ast.Module) -> list[str]:
    """Imports of libraries that open files on any store."""
    used = [(i.line, f"{i.module}.{i.name}" if i.name else i.module) for i in layout.imports(tree)]
    return [f"line {line}: {name}" for line, name in used if re.match(r"(fsspec|s3fs|pyarrow\.fs)\b", name)]


def test_our_own_modules_are_imported_by_their_names() -> None:
    assert broken(lambda file: refused_imports(file, tree_of(file)), python_files(*PACKAGES)) == {}


def test_packages_import_nothing_but_doors() -> None:
    packages = {file for file in python_files(*PACKAGES) if file.endswith("__init__.py")}
    assert {file for file in packages if layout.imports(tree_of(file))} == DOORS


def test_only_storage_knows_file_systems() -> None:
    others = [file for file in sources() if room_of(file) != STORAGE]
    assert broken(lambda file: file_systems(tree_of(file)), others) == {}


def test_scoring_runs_on_a_bare_gpu_machine() -> None:
    files = [f for f in python_files("pipeline") if room_of(f) not in DRIVER_ROOMS and f not in DRIVER_FILES]
    assert broken(lambda file: loaded_at_import(file) - SCORING_LIBRARIES, files) == {}


def test_libraries_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    needed = names(project["dependencies"])
    extras = {name for entry in project["optional-dependencies"].values() for name in names(entry)}

    def undeclared(file: str) -> set[str]:
        at_import = {DISTRIBUTIONS.get(n, n) for n in libraries(tree_of(file), at_import=True)}
        anywhere = {DISTRIBUTIONS.get(n, n) for n in libraries(tree_of(file))}
        # An extra may be missing: the function that needs it imports it.
        return (at_import - needed) | (anywhere - needed - extras)

    assert broken(undeclared, sources()) == {}


def test_messages_install_a_dependency_or_an_extra_of_the_checkout() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    entries = [*project["dependencies"], *(entry for listed in extras.values() for entry in listed)]
    known = {re.split(r"[^\w-]", entry)[0] for entry in entries} - {project["name"]}
    known |= {f"'.[{extra}]'" for extra in extras}
    told = {file: set(layout.told_installs(tree_of(file))) for file in sources()}
    assert {"scikit-image", "matplotlib"} <= set().union(*told.values())
    assert {file: names - known for file, names in told.items() if names - known} == {}


def test_heavy_libraries_load_only_when_a_job_runs() -> None:
    files = [*LIGHT_FILES, *python_files("jobs")]
    assert broken(lambda file: loaded_at_import(file) & HEAVY_LIBRARIES, files) == {}


def test_what_the_command_itself_loads_is_next_to_nothing() -> None:
    assert loaded_at_import("jobs/cli.py") <= {"patchsieve", *sys.stdlib_module_names}


def test_a_score_run_itself_loads_no_model() -> None:
    assert broken(lambda file: loaded_at_import(file) & MODEL_LIBRARIES, LIGHT_DRIVERS) == {}


def test_files_are_short() -> None:
    files = python_files("patchsieve", *PACKAGES, "tests", "benchmarks")
    lines = {file: len(text_of(file).splitlines()) for file in files}
    limit = {file: MAX_JOB_LINES if file.startswith("jobs/") else MAX_LINES for file in files}
    assert {file: count for file, count in lines.items() if count > limit[file]} == {}, "split them by idea"
    least, most = MEDIAN_LINES
    rooms = [count for file, count in lines.items() if file in sources() and not file.endswith("__init__.py")]
    assert least <= statistics.median(rooms) <= most


def test_only_storage_writes_to_what_is_not_scratch() -> None:
    others = [file for file in sources() if room_of(file) != STORAGE]
    assert broken(lambda file: layout.writes(tree_of(file)), others) == {}


def test_private_api_of_ray_is_used_in_one_file() -> None:
    files = files_with(r"\bray\b")
    assert broken(lambda file: layout.private_ray(tree_of(file)), files).keys() == {PRIVATE_RAY_FILE}


def test_nothing_is_unpickled() -> None:
    assert broken(lambda file: layout.unsafe_loads(tree_of(file)), sources()) == {}


def test_what_is_printed_is_shown() -> None:
    others = [file for file in sources() if file != "pipeline/shown.py"]
    assert broken(lambda file: layout.raw_prints(tree_of(file)), others) == {}


def test_no_shell() -> None:
    files = files_with("|".join(["shell", *(call.split(".")[-1] for call in layout.SHELL_CALLS)]))
    assert broken(lambda file: layout.shell_use(tree_of(file)), files) == {}


def test_imports_can_be_followed() -> None:
    others = [file for file in sources() if file not in COMPUTED_IMPORT_FILES]
    assert broken(lambda file: layout.computed_imports(tree_of(file)), others) == {}
