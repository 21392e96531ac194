"""What lies around a run and would trip Ray is told in one line, with the way out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import ray

from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.cluster.surroundings import check_shadows
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.runs.stop import StopRequest
from tests.helpers.checkout import ROOT


@pytest.mark.parametrize(
    "hidden", ["safetensors.py", "timm/__init__.py", "torchvision.py", "random.py", "yaml.py"]
)
def test_a_module_that_hides_an_installed_one_is_named(
    tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).touch()
    monkeypatch.chdir(tmp_path)
    name = hidden.partition("/")[0]
    with pytest.raises(UserError, match=f"{name} would be imported by Ray's workers") as told:
        check_shadows()
    assert "start this from another folder" in str(told.value)


def test_what_hides_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_job.py", "photos.tar", "torch.txt"):
        (tmp_path / name).touch()
    (tmp_path / "timm").mkdir()  # without an __init__.py it hides nothing
    monkeypatch.chdir(tmp_path)
    check_shadows()
    monkeypatch.chdir(ROOT)
    check_shadows()


def said_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a Ray that does not start, for that reason."""

    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(PatchsieveError) as told, ray_session(StopRequest(lambda _signal: None)):
        pass
    assert "\n" not in str(told.value)
    return str(told.value)


# As Ray 2.60 says it.
TOO_LONG = (
    "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x/sockets/plasma_store"
)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(name, f"/{'x' * 100}")
    said = said_of(OSError(TOO_LONG), monkeypatch)
    assert said.startswith(f"{name} is /xxx")
    assert "set RAY_TMPDIR to a short folder" in said


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    said = said_of(PermissionError(errno.EACCES, "Permission denied", "/.ray"), monkeypatch)
    assert said.startswith(
        "Ray keeps its token in /.ray, which cannot be written (Permission denied): set HOME"
    )
    assert said_of(OSError("a node\nis slow"), monkeypatch) == "cannot reach or start Ray: a node is slow"


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_of(Exception("The current node timed out during startup. This could"), monkeypatch)
    assert said.startswith("Ray did not start within the 30 s")
