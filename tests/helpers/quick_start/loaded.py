"""What the zygotes load before they fork, and which environments it was loaded in."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Any

# What Ray and our rooms import, but for themselves.
MODULES = (
    *("torch", "torch.nn.parallel", "torchvision.transforms.functional", "timm"),
    "torch._dynamo",  # which models in parallel load, in each worker of a training
    *("numpy", "pandas", "PIL.Image", "matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboardX"),
    *("pyarrow.dataset", "pyarrow.fs", "pyarrow.json", "pyarrow.parquet"),
    *("fsspec.implementations.local", "s3fs", "requests", "tyro", "yaml"),
    *("click", "jsonschema", "packaging.version", "psutil", "pydantic.main", "pydantic.types", "pydantic.v1"),
    *("aiohttp.web", "aiohttp_cors", "grpc.aio", "msgpack", "prometheus_client"),
    *("opencensus.stats.stats", "opentelemetry.exporter.prometheus", "opentelemetry.sdk.metrics"),
    *("google.protobuf.json_format", "google.protobuf.struct_pb2", "google.protobuf.timestamp_pb2"),
)
RAY = ("ray.data", "ray.job_submission", "ray.train.torch", "ray.util.state")
# Read by libraries while they are loaded: a process with others than ours starts by itself.
LOADED_WITH = ("PYTHON", "LD_", "LC_", "LANG", "MKL_", "KMP_", "TORCH_")
TAKEN_OVER = ("PYTHONPATH", "PYTHONBREAKPOINT")
# Ray preloads it for its helpers, which forks do as well without.
ALLOCATOR = os.path.join("ray", "core", "libjemalloc.so")
# Read by Ray when it runs, not while it is loaded.
READ_LATER = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR")
# Told to Ray's helpers and read by them when they run; its library, which reads them too, wants them of workers alone.
OF_WORKERS = ("RAY_JOB_ID", "RAY_LD_PRELOAD_ON_WORKERS", "RAY_NODE_ID", "RAY_RAYLET_PID")


class _ActorClassID:
    """Ray draws identifiers of actors' classes as its modules are loaded, and forks would share that generator."""

    @staticmethod
    def from_random() -> Any:
        kind = sys.modules["ray"].ActorClassID
        return kind(os.urandom(kind.size()))


def load() -> None:
    """All but Ray."""
    for name in MODULES:
        import_module(name)
    _keep()


def load_ray(variables: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Ray, in an environment of these variables of its own; returns what it adds: variables, and places of modules."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(variables)
    names, places = set(os.environ), set(sys.path)
    import_module("ray.actor").ActorClassID = _ActorClassID  # type: ignore[attr-defined]
    for name in RAY:
        import_module(name)
    _keep()
    added = {name: os.environ[name] for name in set(os.environ) - names}
    return added, [place for place in sys.path if place not in places]


def _keep() -> None:
    """A fork's collector would go through all of this again and again, and copy every page of it."""
    gc.collect()
    gc.freeze()


def is_alike(environ: dict[str, str]) -> bool:
    """Whether a process with these variables would load all but Ray as this one did."""
    ours, theirs = (
        {
            name: value
            for name, value in values.items()
            if name.startswith(LOADED_WITH) and name not in TAKEN_OVER and not value.endswith(ALLOCATOR)
        }
        for values in (os.environ, environ)
    )
    return ours == theirs


def ray_variables(request: dict[str, Any]) -> dict[str, str]:
    """Those that Ray reads while it is loaded by the process that asks."""
    ignored = READ_LATER if request["arguments"][0].endswith("default_worker.py") else READ_LATER + OF_WORKERS
    return {
        name: value
        for name, value in sorted(request["environ"].items())
        if name.startswith("RAY_") and name not in ignored
    }
