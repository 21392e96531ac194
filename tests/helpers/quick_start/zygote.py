"""A process with the heavy imports behind it, of which Ray's workers and commands that tests start are forked.

`import torch, ray` takes four seconds of a core, and the suite starts some hundreds of them. hand_over.py asks for a
fork that goes on as the new process would: the same program with its arguments, environment, folder, files, limits,
priority and process group. What is tested is imported by the fork.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

loaded = import_module("loaded")  # a file beside this one, which is no module of a package here
REQUEST_BYTES = 1 << 20
# Files are kept from here on until those are closed in whose places they belong.
APART = 512

Received = tuple[dict[str, Any], list[int]]
"""What a fork is to become, and the files that it was sent."""


class Zygote:
    """Forks for whoever asks, as long as the process lives that started it.

    The first one has not loaded Ray, whose library reads its environment while it is loaded: for each such environment
    it forks another one that loads Ray in it, and sends there who asks.
    """

    def __init__(self, listener: socket.socket, parent: int) -> None:
        self._path = listener.getsockname()
        self._numbers = itertools.count()
        self._others: dict[str, str] = {}
        self.added_by_ray: tuple[dict[str, str], list[str]] | None = None
        self._serve(listener, parent)

    def _serve(self, listener: socket.socket, parent: int) -> None:
        self._listener = listener
        self._forks = 0
        self._is_over = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._asked)
        self._when_ended(parent, lambda: os._exit(0))

    def _when_ended(self, pid: int, then: Callable[[], None]) -> None:
        ended = os.pidfd_open(pid)

        def told() -> None:
            self._selector.unregister(ended)
            os.close(ended)
            then()

        self._selector.register(ended, selectors.EVENT_READ, told)

    def request(self) -> Received:
        """Returns in forks alone."""
        while True:
            key, _ = self._selector.select()[0]  # one at a time: it may end what others were about
            received: Received | None = key.data()
            if received is not None:
                return received
            if self._is_over and not self._forks:
                os._exit(0)

    def _asked(self) -> Received | None:
        link, _ = self._listener.accept()
        request, files = _read(link)
        answer: int | str | None = 0
        if request is not None and loaded.is_alike(request["environ"]):
            if self.added_by_ray is None:
                answer = self._place_for(loaded.ray_variables(request))
            else:
                answer = os.fork()
                if not answer:
                    self._forget()
                    link.close()
                    return request, files
        for file in files:
            os.close(file)
        with contextlib.suppress(OSError):  # it was killed meanwhile: the next event says so
            if answer is not None:
                link.sendall(f"{answer}\n".encode())
        if isinstance(answer, int) and answer:
            self._forks += 1
            self._selector.register(link, selectors.EVENT_READ, partial(self._left, link, answer))
            self._when_ended(answer, partial(self._ended, answer, link))
        else:
            link.close()
        return None

    def _place_for(self, variables: dict[str, str]) -> str | None:
        """Where the one listens that loaded Ray with these variables; None in that one, which begins here."""
        key = json.dumps(variables)
        if key not in self._others:
            self._others[key] = place = f"{self._path}.{next(self._numbers)}"
            listener = _listening(place)
            first = os.getpid()
            pid = os.fork()
            if not pid:
                self._forget()
                self._serve(listener, first)
                if "RAY_RAYLET_PID" in variables:
                    try:
                        self._when_ended(int(variables["RAY_RAYLET_PID"]), self._raylet_ended)
                    except ProcessLookupError:
                        self._raylet_ended()
                self.added_by_ray = loaded.load_ray(variables)
                return None
            listener.close()
            self._when_ended(pid, partial(self._other_ended, pid, key))
        return self._others[key]

    def _forget(self) -> None:
        """Close all that is the zygote's, each by its owner: one that is collected later would close a stranger's."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif isinstance(key.fileobj, int):
                os.close(key.fileobj)
        self._selector.close()

    def _raylet_ended(self) -> None:
        self._is_over = True

    def _other_ended(self, pid: int, key: str) -> None:
        os.waitpid(pid, 0)
        del self._others[key]

    def _left(self, link: socket.socket, pid: int) -> None:
        """The one that asked is gone, so its fork goes."""
        self._selector.unregister(link)
        link.close()
        os.kill(pid, signal.SIGKILL)

    def _ended(self, pid: int, link: socket.socket) -> None:
        self._forks -= 1
        _, status = os.waitpid(pid, 0)
        if link.fileno() != -1:
            self._selector.unregister(link)
            with contextlib.suppress(OSError):  # it is gone as well
                link.sendall(b"%d\n" % status)
            link.close()


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    return listener


def _read(link: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """What is asked for, None where whoever asked was killed meanwhile, and the files that came along."""
    files: list[int] = []
    try:
        data, files, _, _ = socket.recv_fds(link, REQUEST_BYTES, 64)
        while data and not data.endswith(b"\n"):
            more = link.recv(REQUEST_BYTES)
            data = more and data + more
    except OSError:
        data = b""
    return json.loads(data) if data else None, files


def _become(request: dict[str, Any], files: list[int], added: tuple[dict[str, str], list[str]]) -> None:
    """This process gets what belongs to the one that asked, once that one tells whose fork this is."""
    variables, places = added
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
    os.environ.update({**variables, **request["environ"]})
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = {"stderr": "backslashreplace"}.get(name)
        stream = open(  # noqa: SIM115 -- as long as the process lives
            number, "w" if number else "r", buffering=1 if number == 2 else -1, errors=errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[:] = [*places, *request["path"]]
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
    """As `python FILE ...`, `python -m MODULE ...` or `python -c CODE ...` would, each with `-P` or `-u` before it."""
    sys.orig_argv = [sys.executable, *arguments]
    safe_path, unbuffered = (arguments[0] == option for option in ("-P", "-u"))
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    first, *rest = arguments[safe_path or unbuffered :]
    main = ModuleType("__main__")
    vars(main).update(__builtins__=__builtins__)
    sys.modules["__main__"] = main
    if not safe_path:
        places = {"-c": "", "-m": os.getcwd()}
        sys.path.insert(0, places.get(first, os.path.dirname(os.path.realpath(first))))
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], vars(main))
        return
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
    zygote = Zygote(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    loaded.load()
    request, files = zygote.request()
    assert zygote.added_by_ray is not None
    _become(request, files, zygote.added_by_ray)
    try:
        run(request["arguments"])
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    _end(code)


if __name__ == "__main__":
    _begin()
