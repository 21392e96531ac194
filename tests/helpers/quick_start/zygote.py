"""A process with the heavy imports behind it, of which Ray's workers and commands that tests start are forked.

`import torch, ray` takes four seconds of a core, and the suite starts some hundreds of them. hand_over.py asks for a
fork that goes on as the new process would: the same program with its arguments, environment, folder, files, limits,
priority and process group. Ray and what is tested are imported by the fork, so that both see the fork's environment.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

# What Ray and our rooms import, but for themselves.
MODULES = (
    *(
        "torch",
        "torch.nn.parallel",
        "torchvision.transforms.functional",
        "timm",
        "numpy",
        "pandas",
        "PIL.Image",
    ),
    *("pyarrow.dataset", "pyarrow.fs", "pyarrow.parquet", "fsspec.implementations.local", "yaml", "requests"),
    *("click", "jsonschema", "packaging.version", "psutil", "pydantic.main", "pydantic.types"),
    *("aiohttp.web", "aiohttp_cors", "grpc.aio", "msgpack", "prometheus_client"),
    *("opencensus.stats.stats", "opentelemetry.exporter.prometheus", "opentelemetry.sdk.metrics"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboardX"),
    "torch._dynamo",  # which models in parallel load, in each worker of a training
    *("google.protobuf.json_format", "google.protobuf.struct_pb2", "google.protobuf.timestamp_pb2"),
)
# Read by libraries while they are loaded: a process with others than ours starts by itself.
LOADED_WITH = ("PYTHON", "LD_", "LC_", "LANG", "MKL_", "KMP_", "TORCH_")
TAKEN_OVER = ("PYTHONPATH", "PYTHONBREAKPOINT")
# Ray preloads it for its helpers, which forks do as well without.
ALLOCATOR = os.path.join("ray", "core", "libjemalloc.so")
REQUEST_BYTES = 1 << 20
# Files are kept from here on until those are closed in whose places they belong.
APART = 512


class Zygote:
    """Forks for whoever asks, as long as the process lives that started it."""

    def __init__(self, path: str, parent: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._parent = os.pidfd_open(parent)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(128)
        for source in (self._listener, self._parent):
            self._selector.register(source, selectors.EVENT_READ)

    def request(self) -> tuple[dict[str, Any], list[int]]:
        """Returns in forks alone, with what one is to become and the files that it was sent."""
        while True:
            key, _ = self._selector.select()[0]  # one at a time: it may end what others were about
            if key.fileobj == self._parent:
                sys.exit()
            if key.fileobj is self._listener:
                link, _ = self._listener.accept()
                received = self._answered(link)
                if received is not None:
                    return received
            elif isinstance(key.fileobj, int):
                self._ended(key.fileobj, *key.data)
            else:  # the one that asked is gone, so its fork goes
                self._selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)

    def _answered(self, link: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
        files: list[int] = []
        try:
            data, files, _, _ = socket.recv_fds(link, REQUEST_BYTES, 64)
            while data and not data.endswith(b"\n"):
                more = link.recv(REQUEST_BYTES)
                data = more and data + more
        except OSError:  # it was killed while it asked
            data = b""
        request = json.loads(data) if data else None
        pid = 0
        if request is not None and _loaded_alike(request["environ"]):
            pid = os.fork()
            if not pid:
                self._forget()
                link.close()
                return request, files
        for file in files:
            os.close(file)
        with contextlib.suppress(OSError):  # it was killed meanwhile: the next event says so
            link.sendall(b"%d\n" % pid)
        if pid:
            self._selector.register(link, selectors.EVENT_READ, pid)
            self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, link))
        else:
            link.close()
        return None

    def _forget(self) -> None:
        """Close all that is the zygote's, each by its owner: one that is collected later would close a stranger's."""
        for key in list(self._selector.get_map().values()):
            for source in (key.fileobj, *(key.data if isinstance(key.data, tuple) else ())):
                if isinstance(source, socket.socket):
                    source.close()
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
        self._selector.close()

    def _ended(self, ended: int, pid: int, link: socket.socket) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        if link in self._selector.get_map():
            self._selector.unregister(link)
            with contextlib.suppress(OSError):  # it is gone as well
                link.sendall(b"%d\n" % status)
        link.close()


def _loaded_alike(environ: dict[str, str]) -> bool:
    ours, theirs = (
        {
            name: value
            for name, value in values.items()
            if name.startswith(LOADED_WITH) and name not in TAKEN_OVER and not value.endswith(ALLOCATOR)
        }
        for values in (os.environ, environ)
    )
    return ours == theirs


def _become(request: dict[str, Any], files: list[int]) -> None:
    """This process gets what belongs to the one that asked, once that one tells whose fork this is."""
    begun, *files = files
    os.read(begun, 1)
    os.close(begun)
    apart = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, APART) for file in files]
    os.closerange(3, APART)
    for number, file in zip(request["files"], apart, strict=True):
        os.dup2(file, number)
    os.closerange(APART, max(apart) + 1)
    if request["leads"] == "session":
        os.setsid()
    elif request["leads"] == "group":
        os.setpgid(0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, request["priority"])
    for name, limits in request["limits"].items():
        resource.setrlimit(int(name), tuple(limits))
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = {"stderr": "backslashreplace"}.get(name)
        stream = open(  # noqa: SIM115 -- as long as the process lives
            number, "w" if number else "r", buffering=1 if number == 2 else -1, errors=errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[:] = request["path"]
    sys.modules["numpy"].random.seed()
    os.environ.__class__ = _Environ
    for name in {"OMP_NUM_THREADS"} & set(os.environ):
        os.environ[name] = os.environ[name]


class _Environ(type(os.environ)):  # type: ignore[misc]
    """Ray says how many threads a worker has when it knows what for, and torch is loaded after that elsewhere."""

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name, value)
        if name == "OMP_NUM_THREADS":
            sys.modules["torch"].set_num_threads(int(value))


def run(arguments: list[str]) -> None:
    """As `python FILE ...` would, or `python -m MODULE ...`, either with `-P` or `-u` before it."""
    sys.orig_argv = [sys.executable, *arguments]
    safe_path, unbuffered = (arguments[0] == option for option in ("-P", "-u"))
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    first, *rest = arguments[safe_path or unbuffered :]
    main = ModuleType("__main__")
    vars(main).update(__builtins__=__builtins__)
    sys.modules["__main__"] = main
    if not safe_path:
        sys.path.insert(0, os.getcwd() if first == "-m" else os.path.dirname(os.path.realpath(first)))
    if first == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
        return
    sys.argv = [first, *rest]
    main.__file__ = first
    with open(first, "rb") as file:
        code = compile(file.read(), first, "exec")
    exec(code, vars(main))


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _end(code: int) -> NoReturn:
    """What the end of a process does, but for taking apart all that is loaded: for a fork that takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(code & 0xFF)


def _begin() -> None:
    zygote = Zygote(sys.argv[1], int(sys.argv[2]))
    for name in MODULES:
        import_module(name)
    # A fork's collector would go through all of this again and again, and copy every page of it.
    gc.collect()
    gc.freeze()
    request, files = zygote.request()
    _become(request, files)
    try:
        run(request["arguments"])
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    _end(code)


if __name__ == "__main__":
    _begin()
