"""Rules of the code that can be read off syntax trees; each takes one file's tree and tells what breaks it.

Nothing here names a file of the project: which files a rule holds for is said in tests/project/test_layout.py.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache

# What is opened for writing must be scratch on this machine or memory, and its expression must say so.
SCRATCH_NAME = re.compile(r"(^|_)(scratch|temporary|buffer|local)(_|$)")
PICKLE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SHELL_CALLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNSAFE_CALLS = {"eval", "exec", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
# Functions that write to the path they are given, and which positional argument that is.
WRITERS = {
    "write_table": 1,  # pyarrow.parquet
    "write_metadata": 1,
    "write_dataset": 1,
    "ParquetWriter": 0,
    "save_file": 1,  # safetensors.torch
    "imsave": 0,  # matplotlib
    "savefig": 0,
    "savetxt": 0,  # numpy
    "savez": 0,
    "save": 0,  # numpy and pictures
}
SECOND_ARGUMENT_SAVES = {"torch.save"}
RETURNS_BYTES = {"safetensors.torch.save", "safetensors.numpy.save"}
TARGET_KEYWORDS = {"where", "file", "filename", "fname", "fp", "path", "f"}
PRIVATE_IN_RAY = re.compile(r"^ray\.((core|dashboard|includes|scripts)\b|(.*\.)?_(?!_))")
FOLDER_CALLS = re.compile(r"^(os\.(replace|rename|renames|link|symlink|truncate)|shutil\.(copy\w*|move))$")
PATH_WRITERS = {"write_text", "write_bytes", "touch", "hardlink_to", "symlink_to"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import: `module` as written, `name` of a from-import; `at_import`: not inside a function."""

    module: str
    name: str | None
    line: int
    at_import: bool


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names and attributes; an inner expression that is none shows as `?`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """Every node of the tree, which several rules look for."""
    return list(ast.walk(tree))


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Every call of the tree."""
    return (node for node in nodes(tree) if isinstance(node, ast.Call))


def value_of(node: ast.expr) -> object:
    """The value of a constant, `...` for any other expression."""
    return node.value if isinstance(node, ast.Constant) else ...


def positional(call: ast.Call, position: int) -> object:
    """The constant at a position; None where nothing stands there, `...` where it is no constant."""
    return value_of(call.args[position]) if position < len(call.args) else None


def keyword(call: ast.Call, name: str) -> object:
    """The constant given by keyword; None where it is not given, `...` where it is no constant."""
    return next((value_of(given.value) for given in call.keywords if given.arg == name), None)


def is_import_call(call: ast.Call) -> bool:
    """Whether the call imports a module by name."""
    return dotted(call.func).split(".")[-1] in {"import_module", "__import__"}


@cache
def imports(tree: ast.Module) -> list[Import]:
    """Every import of the file, also in functions, under TYPE_CHECKING and by `import_module("constant")`."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.extend(Import(module, alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.Call) and is_import_call(node):
            name = positional(node, 0)
            if isinstance(name, str):
                found.append(Import(name, None, node.lineno, at_import))
        elif isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING":
            for typing_only in node.body:
                visit(typing_only, False)
            for otherwise in node.orelse:
                visit(otherwise, at_import)
            return
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        for child in ast.iter_child_nodes(node):
            visit(child, at_import)

    visit(tree, True)
    return found


def computed_imports(tree: ast.Module) -> list[str]:
    """Imports by a name that is computed, which no rule here could follow."""
    return [
        f"line {call.lineno}: imports a module by a computed name"
        for call in calls(tree)
        if is_import_call(call) and not isinstance(positional(call, 0), str)
    ]


def told_installs(tree: ast.Module) -> list[str]:
    """What the file's texts tell people to install: the word after each `pip install` and its options."""
    texts = [str(node.value) for node in nodes(tree) if isinstance(node, ast.Constant)]
    return [m[1] for text in texts for m in re.finditer(r"pip install(?:\s+--?[\w-]+)*\s*([^\s,;:)]*)", text)]


def says_scratch(expression: ast.expr) -> bool:
    """Whether a name or attribute in the expression says that it is local scratch or memory."""
    names = [
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(expression)
        if isinstance(part, ast.Name | ast.Attribute)
    ]
    return any(SCRATCH_NAME.search(name.lower()) for name in names)


def open_target(call: ast.Call) -> ast.expr | None:
    """What an `open` for writing opens; None for one that reads."""
    # open(path, mode), io.open, tarfile.open and fs.open have the mode second, Path.open has it first.
    first = positional(call, 0)
    is_method = isinstance(call.func, ast.Attribute)
    mode_first = is_method and isinstance(first, str) and bool(re.fullmatch(r"[rwaxbt+]{1,3}", first))
    mode = first if mode_first else positional(call, 1) or keyword(call, "mode")
    if mode is not ... and not (isinstance(mode, str) and re.search(r"[wax+]", mode)):
        return None
    return call.func if mode_first or not call.args else call.args[0]


def write_target(call: ast.Call) -> ast.expr | str | None:
    """What the call writes to: an expression, a reason that no name can excuse, None if it does not write."""
    function = dotted(call.func)
    name = function.split(".")[-1]
    if FOLDER_CALLS.match(function):
        return f"{function}() moves or copies files"
    if name == "fdopen":
        return f"{function}() hides what it writes to"
    if name == "open":
        return open_target(call)
    if name in PATH_WRITERS and isinstance(call.func, ast.Attribute):
        return call.func.value
    if name not in WRITERS or function in RETURNS_BYTES:
        return None
    position = 1 if function in SECOND_ARGUMENT_SAVES else WRITERS[name]
    if position < len(call.args):
        return call.args[position]
    # Without a target it is a method of a writer that was given one before.
    return next((given.value for given in call.keywords if given.arg in TARGET_KEYWORDS), None)


def writes(tree: ast.Module) -> list[str]:
    """Writes to anything that is not called scratch, temporary, local or buffer: they belong to storage."""
    found = []
    for call in calls(tree):
        target = write_target(call)
        if isinstance(target, str):
            found.append(f"line {call.lineno}: {target}")
        elif target is not None and not says_scratch(target):
            found.append(f"line {call.lineno}: writes to `{ast.unparse(target)}`, not named as scratch")
    return found


def unsafe_loads(tree: ast.Module) -> list[str]:
    """What could run code from data: unpickling, eval, torch.load but for weights_only, pickled arrays."""
    used = imports(tree)
    found = [
        f"line {i.line}: imports {i.module}"
        for i in used
        if i.module.split(".")[0] in PICKLE_MODULES and not only_catches_pickle_errors(tree, i)
    ]
    torch_loads = {"torch.load"} | {"load" for i in used if (i.module, i.name) == ("torch", "load")}
    for call in calls(tree):
        function = dotted(call.func)
        if function in torch_loads and keyword(call, "weights_only") is not True:
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if function in UNSAFE_CALLS or function.split(".")[-1] == "read_pickle":
            found.append(f"line {call.lineno}: {function}()")
        if keyword(call, "allow_pickle") not in {None, False}:
            found.append(f"line {call.lineno}: allow_pickle")
    return found


def only_catches_pickle_errors(tree: ast.Module, used: Import) -> bool:
    """Whether nothing but the exception is taken from pickle, which torch.load raises too."""
    if used.module != "pickle" or used.name is not None:
        return (used.module, used.name) == ("pickle", "UnpicklingError")
    caught = {
        id(node.value)
        for node in nodes(tree)
        if isinstance(node, ast.Attribute) and node.attr == "UnpicklingError"
    }
    names = [node for node in nodes(tree) if isinstance(node, ast.Name) and node.id == "pickle"]
    return bool(names) and all(id(node) in caught for node in names)


def private_ray(tree: ast.Module) -> list[str]:
    """What is no public API of Ray: its private modules, and underscored attributes in files that know Ray.

    What an object is cannot be read off, so of all objects but the file's own (`self`, `cls`).
    """
    used = [i for i in imports(tree) if i.module.split(".")[0] == "ray"]
    names = [(i.line, f"{i.module}.{i.name}" if i.name else i.module) for i in used]
    attributes = [node for node in nodes(tree) if isinstance(node, ast.Attribute)] if used else []
    names += [(node.lineno, dotted(node)) for node in attributes if dotted(node.value) == "ray"]
    found = {f"line {line}: {name}" for line, name in names if PRIVATE_IN_RAY.search(name)}
    found |= {
        f"line {node.lineno}: {dotted(node)}"
        for node in attributes
        if re.match(r"_(?!_)", node.attr) and dotted(node.value) not in {"self", "cls"}
    }
    return sorted(found)


def raw_prints(tree: ast.Module) -> list[str]:
    """What is printed and is no constant: names and messages that others wrote could be in it."""
    found = [call for call in calls(tree) if dotted(call.func) == "print"]
    return [
        f"line {call.lineno}" for call in found if not all(isinstance(a, ast.Constant) for a in call.args)
    ]


def shell_use(tree: ast.Module) -> list[str]:
    """Commands run through a shell."""
    found = []
    for call in calls(tree):
        if dotted(call.func) in SHELL_CALLS:
            found.append(f"line {call.lineno}: {dotted(call.func)}()")
        if keyword(call, "shell") not in {None, False}:
            found.append(f"line {call.lineno}: shell=True")
    return found
