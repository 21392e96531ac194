"""Each layout rule is given code that breaks it, and code that it must let pass."""

from __future__ import annotations

import ast

import pytest

from tests.project import files as checkout
from tests.project import layout
from tests.project import test_layout as project


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, mode)",
        "io.open(path, 'x')",
        "gzip.open(url, 'wb')",
        "fs.open(final, 'r+b')",
        "with tarfile.open(target, 'w|') as tar: pass",
        "path.open('w')",
        "self._curve.open('a', newline='')",
        "open(f'{folder}/x', 'w')",
        "path.write_text('x')",
        "Path(url).write_bytes(b'')",
        "(folder / 'done').touch()",
        "os.replace(a, b)",
        "os.rename(local, final)",
        "os.link(a, b)",
        "shutil.copyfile(local, final)",
        "shutil.move(a, b)",
        "os.fdopen(handle, 'w')",
        "torch.save(local_state, path)",
        "save_file(state, path)",
        "np.save(path, array)",
        "image.save(path, 'JPEG')",
        "figure.savefig(fname=path)",
        "pq.write_table(table, path)",
        "pq.write_table(table, where=path)",
        "pq.ParquetWriter(path, schema)",
    ],
)
def test_writes_to_other_places_are_found(source: str) -> None:
    assert len(layout.writes(ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "fs.open(url, mode='rb')",
        "tarfile.open(fileobj=stream, mode='r|')",
        "Image.open(path)",
        "open(local, 'wb')",
        "open(scratch / 'x.tar', 'wb')",
        "self._local_curve.open('a')",
        "temporary.write_text('x')",
        "(scratch_folder / name).write_bytes(b'')",
        "torch.save(state, buffer)",
        "image.save(buffer, 'JPEG')",
        "pq.ParquetWriter(local_path, schema)",
        "writer.write_table(table)",
        "text.replace('a', 'b')",
        "self.save()",
        "data = safetensors.torch.save(state)",
    ],
)
def test_reads_and_scratch_pass(source: str) -> None:
    assert layout.writes(ast.parse(source)) == []


def test_scratch_is_a_word_of_a_name_not_a_part_of_one() -> None:
    assert layout.writes(ast.parse("open(locale, 'w')"))
    assert layout.writes(ast.parse("open('/scratch/x', 'w')")), "a text is no name"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as quick\nquick.loads(b'')",
        "import pickle\ntry:\n    pickle.loads(b'')\nexcept pickle.UnpicklingError: pass",
        "import pickle\npickle.UnpicklingError\nload = getattr(pickle, 'loads')",
        "def f():\n    from cloudpickle import loads",
        "import_module('dill')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "yaml.load(text, Loader=loader)",
        "pd.read_pickle(path)",
    ],
)
def test_unsafe_loads_are_found(source: str) -> None:
    assert len(layout.unsafe_loads(ast.parse(source))) == 1


def test_safe_loads_pass() -> None:
    source = "torch.load(path, weights_only=True); np.load(path); yaml.safe_load(text); model.eval()"
    assert layout.unsafe_loads(ast.parse(source)) == []
    caught = "import pickle\ntry:\n    torch.load(x, weights_only=True)\nexcept pickle.UnpicklingError: pass"
    assert layout.unsafe_loads(ast.parse(caught)) == []


@pytest.mark.parametrize(
    "source", ["subprocess.run(c, shell=True)", "run(c, shell=flag)", "os.system(c)", "os.popen(c)"]
)
def test_shells_are_found(source: str) -> None:
    assert len(layout.shell_use(ast.parse(source))) == 1


def test_commands_without_a_shell_pass() -> None:
    assert (
        layout.shell_use(ast.parse("subprocess.run([a], shell=False); run([b]); subprocess.Popen([c])")) == []
    )


@pytest.mark.parametrize(
    "source",
    [
        "from ray._raylet import GcsClient",
        "from ray import _private",
        "import ray.core.generated",
        "from ray.autoscaler._private.util import prepare_config",
        "def f():\n    import ray._private.state",
        "import ray\nray._private.state.actors()",
        "import ray\nray.core.generated",
        "from ray import get\nactor._actor_id",
        "from ray import get\nself._actor._actor_id",
    ],
)
def test_private_api_of_ray_is_found(source: str) -> None:
    assert len(layout.private_ray(ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nself._actor.score.remote(ray.get(x))",
        "from ray.util.annotations import RayDeprecationWarning",
        "import ray\nray.__version__",
        "model._blocks",
    ],
)
def test_public_api_of_ray_passes(source: str) -> None:
    assert layout.private_ray(ast.parse(source)) == []


def test_computed_imports_are_found() -> None:
    assert layout.computed_imports(ast.parse("importlib.import_module(name)"))
    assert layout.computed_imports(ast.parse("__import__('a' + b)"))
    assert layout.computed_imports(ast.parse("import_module('patchsieve.pipeline.errors')")) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise UserError('do: pip install matplotlib')", ["matplotlib"]),
        ("f'{wish} (pip install --force-reinstall matplotlib), or'", ["matplotlib"]),
        ("f'pip install {name}'", [""]),
        ("'do: ' 'pip install ' \"'patchsieve[demo]'; or not\"", ["'patchsieve[demo]'"]),
        ("'installs with pip'", []),
    ],
)
def test_what_messages_install_is_found(source: str, told: list[str]) -> None:
    assert layout.told_installs(ast.parse(source)) == told


@pytest.mark.parametrize(
    "source",
    [
        "from patchsieve import load_teacher",
        "import patchsieve",
        "from .errors import UserError",
        "from pipeline.errors import UserError",
        "import jobs.cli",
        "from tests.helpers import layout",
        "from patchsieve.pipeline.storage.urls import join",
        "import patchsieve.pipeline.storage.urls",
        "def f():\n    from patchsieve.pipeline.storage.urls import join",
    ],
)
def test_imports_by_other_names_are_found(source: str) -> None:
    assert len(project.refused_imports("pipeline/row_config.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipeline/row_config.py", "from patchsieve.pipeline.errors import UserError"),
        ("pipeline/row_config.py", "from patchsieve.pipeline import errors"),
        ("pipeline/row_config.py", "from patchsieve import __version__"),
        ("pipeline/row_config.py", "import json, numpy"),
        ("ranker/demo.py", "from patchsieve.pipeline import storage"),
        ("ranker/demo.py", "from patchsieve.pipeline.storage import join"),
        ("pipeline/storage/writing.py", "from patchsieve.pipeline.storage.urls import join"),
    ],
)
def test_imports_by_our_names_pass(file: str, source: str) -> None:
    assert project.refused_imports(file, ast.parse(source)) == []


def test_libraries_are_seen_wherever_they_are_imported() -> None:
    tree = ast.parse(
        "import json\nif TYPE_CHECKING:\n    import ray.data\ndef f():\n    from torch import nn"
    )
    assert checkout.libraries(tree) == {"ray", "torch"}
    assert checkout.libraries(tree, at_import=True) == set()
    assert checkout.libraries(ast.parse("class A:\n    import torch"), at_import=True) == {"torch"}
    assert checkout.libraries(
        ast.parse("try:\n    import ray\nexcept ImportError: pass"), at_import=True
    ) == {"ray"}


@pytest.mark.parametrize(
    "source", ["import fsspec.core", "from pyarrow import fs", "import pyarrow.fs", "import s3fs"]
)
def test_file_systems_are_found(source: str) -> None:
    assert len(project.file_systems(ast.parse(source))) == 1


def test_parquet_is_no_file_system() -> None:
    assert project.file_systems(ast.parse("import pyarrow.parquet as pq\nfrom pyarrow import Table")) == []


def test_what_an_import_loads_is_followed_through_our_own_files() -> None:
    assert "torch" in checkout.loaded_at_import("pipeline/teacher/model.py")
    assert "timm" in checkout.loaded_at_import("pipeline/teacher/model.py")
    assert "numpy" in checkout.loaded_at_import("pipeline/randomness.py")
    assert checkout.loaded_at_import("pipeline/errors.py") == set()


def test_what_an_import_loads_is_followed_through_the_packages_around_it() -> None:
    assert checkout.loaded_at_import("pipeline/pruned/__init__.py") <= checkout.loaded_at_import(
        "pipeline/pruned/format.py"
    )


def test_prints_of_what_is_no_constant_are_found() -> None:
    assert layout.raw_prints(ast.parse("print(f'{name} is bad')\nprint(line, flush=True)")) == [
        "line 1",
        "line 2",
    ]
    assert layout.raw_prints(ast.parse("print('usage: ...')\nsay(name)")) == []
