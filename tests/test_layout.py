"""The layout of the code, read off syntax trees; tests/test_layout_rules.py shows that each rule bites."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.helpers import layout

ROOT = Path(__file__).resolve().parent.parent

# Imports go one way, from later packages to earlier ones. Within a package a file imports only files listed
# before it. Every file is listed; a new one goes right before the file that uses it.
PACKAGES = ("pipeline", "ranker", "jobs")
LISTED = {
    "pipeline": """
        errors randomness config run_log actor_slots job_config
        storage_urls storage_retry storage_lookup storage_sources storage_streams storage_local storage
        config_file shard_specs tar_stream shards
        image_header images patches
        teacher/architecture teacher/formats teacher/sources teacher/checkpoint
        teacher/blocks teacher/model teacher/build
        pretraining_report pretraining
        metrics capacity inference cost frozen removals launch scoring
        record_file row_buffer score_table table_reader
        heap machine owner done_check output_settings output output_status
        pruned_format pruned_codec pruned_tar
        pruned_sample pruned_collate pruned_source pruned
        shard_feed pruned_index
        queue_policy view_feed aggregate api scratch score_request shard_result teacher_thread shard_scoring
        access work_order scoring_worker scoring_actor actor_pool actor_start run_metrics
        progress pretraining_job estimate queue_tally queue_events shard_queue
        run_summary stop_signals owned_run score_run
        schedule_config schedule_times schedule_tick schedule_corpora job_submission schedule_run
        shard_writer demo_photos picture_sheet contact_sheet sheet_rows demo_sheet
    """,
    "ranker": """
        losses targets metrics
        backbone model sources checkpoint api
        reading_order prefetch shard_bytes image_shards image_views table_index training_batch stored_rows dataset
        selection budget online
        features clustering baseline_fits baselines inference
        evaluation_images partition_scores dense_teacher dense_table
        reconstruction_check evaluate_config evaluation evaluation_run evaluation_report evaluation_plot
        patch_scoring prune_config selector image_tables image_choice prune_feed prune_encode prune
        prune_plan prune_survey prune_summary prune_sheet prune_estimate prune_worker ray_prune prune_events prune_run
        curves initial_weights optimiser training validation_plan validation workers
        train_config train_plan train_estimate train_record training_loop train_progress ray_train
        demo_ranker demo_prune
    """,
    "jobs": "command_line score train prune evaluate pretrain report schedule status demo cli",
}
ORDER = {package: [f"{name}.py" for name in names.split()] for package, names in LISTED.items()}
# The only files that know Ray, and what only they use, on the machine that a run is started from.
RAY_FILES = {
    "pipeline/scoring_actor.py",
    "pipeline/actor_pool.py",
    "pipeline/run_metrics.py",
    "pipeline/shard_queue.py",
    "pipeline/score_run.py",
    "pipeline/job_submission.py",
    "ranker/ray_train.py",
    "ranker/prune_worker.py",
    "ranker/ray_prune.py",
}
DRIVER = """
    job_config config_file progress pretraining pretraining_job score_request estimate run_summary owned_run score_run
    actor_start queue_tally queue_events schedule_config schedule_times schedule_corpora schedule_tick schedule_run
"""
DRIVER_FILES = {f"pipeline/{name}.py" for name in DRIVER.split()}
DRIVER_FILES |= {"ranker/train_config.py", "ranker/train_plan.py", "ranker/prune_config.py"}
# Storage, in one file or several, is what names file systems and writes to final places.
STORAGE_FILES = {f"pipeline/{name}" for name in ORDER["pipeline"] if name.startswith("storage")}
WRITING_FILES = STORAGE_FILES | {"pipeline/scratch.py"}
# Importing these or any job loads nothing heavy, so that --help answers at once.
LIGHT_FILES = [
    "patchsieve/__init__.py",
    "pipeline/config.py",
    "pipeline/job_config.py",
    "pipeline/schedule_config.py",
    "ranker/train_config.py",
    "ranker/evaluate_config.py",
    "ranker/prune_config.py",
]
# What a score run's own process does without: checking a teacher and asking for actors takes no model and no decoder.
LIGHT_DRIVERS = ["pipeline/score_request.py", "pipeline/score_run.py"]
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

MAX_LINES = 300
MAX_JOB_LINES = 80


def python_files(*folders: str) -> list[str]:
    """The Python files below the folders, relative to the root."""
    return sorted(p.relative_to(ROOT).as_posix() for folder in folders for p in (ROOT / folder).rglob("*.py"))


def sources() -> list[str]:
    """The files that are installed."""
    return python_files("patchsieve", *PACKAGES)


@cache
def tree_of(file: str) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def broken(rule: Callable[[str], object], files: list[str]) -> dict[str, object]:
    """What the rule finds, by file; files without findings are left out."""
    return {file: found for file in files if (found := rule(file))}


def rank_of(file: str) -> tuple[int, int]:
    """The file's place in the order, package first; a package's own __init__ comes before its files."""
    package, _, rest = file.partition("/")
    if package == "patchsieve":
        return (len(PACKAGES), 0)
    if rest not in ORDER[package] and not rest.endswith("__init__.py"):
        raise AssertionError(f"{file}: add it to LISTED right before the file that uses it")
    return (PACKAGES.index(package), ORDER[package].index(rest) if rest in ORDER[package] else -1)


def file_of(module: str) -> str | None:
    """The file that `patchsieve.pipeline.x` names, relative to the root; None if there is none."""
    path = module.removeprefix("patchsieve").strip(".").replace(".", "/") or "patchsieve"
    candidates = (f"{path}.py", f"{path}/__init__.py")
    return next((candidate for candidate in candidates if (ROOT / candidate).is_file()), None)


def imported_file(used: layout.Import) -> str | None:
    """The file of ours that an import means: the module, not the package that it is imported from."""
    if used.module.split(".")[0] != "patchsieve":
        return None
    return (file_of(f"{used.module}.{used.name}") if used.name else None) or file_of(used.module)


def names_a_module(target: str | None, used: layout.Import) -> bool:
    """Whether the import means a module of ours: packages are empty, a name from one must be a module."""
    return target is not None and not (used.name and target.endswith("__init__.py"))


def refused_imports(file: str, tree: ast.Module) -> list[str]:
    """Imports against the order, and imports of our folders under other names than their own."""
    found = []
    for used in layout.imports(tree):
        target = imported_file(used)
        if used.module.split(".")[0] in {*PACKAGES, "", "tests", "benchmarks"}:
            found.append(f"line {used.line}: {used.module} is no name of ours, which begin with patchsieve")
        elif target == "patchsieve/__init__.py" and used.name == "__version__":
            continue
        elif used.module.split(".")[0] == "patchsieve" and not names_a_module(target, used):
            found.append(f"line {used.line}: there is no {used.module}.{used.name or ''}")
        elif target is not None and file != "patchsieve/__init__.py" and rank_of(target) >= rank_of(file):
            found.append(f"line {used.line}: imports {target}, which comes later")
    return found


def libraries(tree: ast.Module, *, at_import: bool = False) -> set[str]:
    """Top-level names of imported libraries that are neither ours nor Python's."""
    names = {i.module.split(".")[0] for i in layout.imports(tree) if i.at_import or not at_import}
    return names - set(sys.stdlib_module_names) - {"patchsieve", ""}


def loaded_at_import(file: str) -> set[str]:
    """Libraries that importing the file loads, through files of ours too."""
    seen: set[str] = set()
    ahead, loaded = [file], set()
    while ahead:
        current = ahead.pop()
        if current not in seen:
            seen.add(current)
            loaded |= libraries(tree_of(current), at_import=True)
            used = [imported_file(i) for i in layout.imports(tree_of(current)) if i.at_import]
            ahead += [target for target in used if target]
    return loaded


def file_systems(tree: ast.Module) -> list[str]:
    """Imports of libraries that open files on any store."""
    used = [(i.line, f"{i.module}.{i.name}" if i.name else i.module) for i in layout.imports(tree)]
    return [f"line {line}: {name}" for line, name in used if re.match(r"(fsspec|s3fs|pyarrow\.fs)\b", name)]


def test_every_file_has_its_place_in_the_order() -> None:
    for package in PACKAGES:
        present = {file.removeprefix(f"{package}/") for file in python_files(package)}
        missing = {file for file in present - set(ORDER[package]) if not file.endswith("__init__.py")}
        assert missing == set(), "add these to LISTED, right before the file that uses them"
        assert len(ORDER[package]) == len(set(ORDER[package]))


def test_imports_go_one_way() -> None:
    assert broken(lambda file: refused_imports(file, tree_of(file)), sources()) == {}


def test_packages_import_nothing() -> None:
    packages = [f for f in python_files(*PACKAGES) if f.endswith("__init__.py")]
    assert broken(lambda file: layout.imports(tree_of(file)), packages) == {}


def test_ray_is_known_only_where_it_is_used() -> None:
    others = [file for file in sources() if file not in RAY_FILES]
    assert broken(lambda file: libraries(tree_of(file)) & {"ray"}, others) == {}


def test_only_storage_knows_file_systems() -> None:
    others = [file for file in sources() if file not in STORAGE_FILES]
    assert broken(lambda file: file_systems(tree_of(file)), others) == {}


def test_scoring_runs_on_a_bare_gpu_machine() -> None:
    files = [f for f in python_files("pipeline") if f not in RAY_FILES | DRIVER_FILES]
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


def test_a_score_run_itself_loads_no_model() -> None:
    assert broken(lambda file: loaded_at_import(file) & MODEL_LIBRARIES, LIGHT_DRIVERS) == {}


def test_files_are_short() -> None:
    files = python_files("patchsieve", *PACKAGES, "tests", "benchmarks")
    lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files}
    limit = {file: MAX_JOB_LINES if file.startswith("jobs/") else MAX_LINES for file in files}
    assert {file: count for file, count in lines.items() if count > limit[file]} == {}, "split them by idea"


def test_only_storage_writes_to_what_is_not_scratch() -> None:
    others = [file for file in sources() if file not in WRITING_FILES]
    assert broken(lambda file: layout.writes(tree_of(file)), others) == {}


def test_nothing_is_unpickled() -> None:
    assert broken(lambda file: layout.unsafe_loads(tree_of(file)), sources()) == {}


def test_no_shell() -> None:
    files = python_files("patchsieve", *PACKAGES, "tests", "benchmarks")
    assert broken(lambda file: layout.shell_use(tree_of(file)), files) == {}


def test_imports_can_be_followed() -> None:
    others = [file for file in sources() if file not in COMPUTED_IMPORT_FILES]
    assert broken(lambda file: layout.computed_imports(tree_of(file)), others) == {}
