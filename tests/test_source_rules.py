"""What no source file may do (R9), and what importing the library may not do."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Text of every file, by its place in the repository. Each rule is one test: thousands of small ones took half a minute.
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("ppl_vae", "experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "runpy"),
}
FORBIDDEN_BUILTINS = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.serialization.load", "torch.package"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
}
FORBIDDEN_METHODS = {"extractall", "read_pickle", "to_pickle"}
NUMPY_LOADS = {"np.load", "numpy.load"}

# Names are imported by name here: submodules by the tables of the library, and code that the command line names.
IMPORTERS = {"ppl_vae/__init__.py", "ppl_vae/cli/experiments.py", "ppl_vae/cli/pairs.py"}
IMPORTING = {"import_module", "spec_from_file_location", "run_path", "run_module"}

# What a run leaves is written by one module, in which every system call can be made to fail.
WRITERS = {"ppl_vae/storage/calls.py", "ppl_vae/storage/files.py", "ppl_vae/storage/lock.py"}
OF_RUNS = ("ppl_vae/storage/", "ppl_vae/rundir/", "ppl_vae/svi/", "ppl_vae/evaluation/")
WRITING = {
    *("write_text", "write_bytes", "open", "mkdir", "unlink", "rmdir", "rename", "touch", "symlink_to", "rmtree"),
    *("save_file", "save", "tofile"),
}


def violations(source: str) -> list[str]:
    """Rule-breaking constructs of a source text, each as `line: what`."""
    tree = ast.parse(source)
    known = _aliases(tree)
    return [f"{node.lineno}: {what}" for node in ast.walk(tree) for what in _breaches(node, known)]


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What names of a source text mean that an import has given them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.asname: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def _full(node: ast.AST, known: dict[str, str]) -> str:
    """A dotted name as it is without the aliases of imports."""
    first, dot, rest = ast.unparse(node).partition(".")
    return known.get(first, first) + dot + rest


def _breaches(node: ast.AST, known: dict[str, str]) -> list[str]:
    match node:
        case ast.Import(names):
            return [f"import {name.name}" for name in names if name.name.split(".")[0] in FORBIDDEN_MODULES]
        case ast.ImportFrom(module=str(module), names=names):
            qualified = {f"{module}.{name.name}" for name in names} & (FORBIDDEN_CALLS | NUMPY_LOADS)
            return sorted(qualified) + ([module] if module.split(".")[0] in FORBIDDEN_MODULES else [])
        case ast.Name(id=name) if name in FORBIDDEN_BUILTINS:
            return [name]
        case ast.Attribute(attr=name) if name in FORBIDDEN_METHODS or _full(node, known) in FORBIDDEN_CALLS:
            return [ast.unparse(node)]
        case ast.Call(func=function, keywords=keywords):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
            shell = ["shell=True"] if options.get("shell", "False") != "False" else []
            loads = _full(function, known) in NUMPY_LOADS or ast.unparse(function).endswith("read_array")
            unsafe = options.get("allow_pickle", "" if loads else "False") != "False"
            return shell + (["array read without allow_pickle=False"] if unsafe else [])
    return []


def test_source_keeps_the_rules():
    assert {place: found for place, source in SOURCES.items() if (found := violations(source))} == {}


def imports(source: str) -> list[str]:
    """Calls that import a module whose name is not written there."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func).split(".")[-1] in IMPORTING]
    return [ast.unparse(call) for call in named if not all(isinstance(a, ast.Constant) for a in call.args)]


def test_modules_are_imported_by_name_in_few_places():
    others = {place: source for place, source in SOURCES.items() if place not in IMPORTERS}
    assert {place: found for place, source in others.items() if (found := imports(source))} == {}


def test_the_scan_for_imports_sees():
    assert imports("importlib.import_module(name)")
    assert imports("spec_from_file_location(name, path)")
    assert not imports("importlib.import_module('torch.distributed.nn')")


def test_tests_import_each_other_under_one_name():
    """`from pairs` beside `from tests.pairs` makes two modules; pytest itself imports tests by their bare names."""
    tests = sorted((ROOT / "tests").glob("*.py"))
    names = {path.stem for path in tests if not path.stem.startswith(("test_", "conftest"))}
    trees = {path.name: ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in tests}
    imported = {name: {n.module for n in tree if isinstance(n, ast.ImportFrom)} for name, tree in trees.items()}
    assert {name: own & names for name, own in imported.items() if own & names} == {}


def writes(source: str) -> list[str]:
    """Calls by which a source text changes what is on the disk by itself."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(function, getattr(function, "attr", getattr(function, "id", ""))) for function in calls]
    return [ast.unparse(function) for function, name in named if name in WRITING]


def test_runs_are_written_by_one_module():
    inside = {place: s for place, s in SOURCES.items() if place.startswith(OF_RUNS) and place not in WRITERS}
    assert len(inside) > 50
    assert {place: found for place, source in inside.items() if (found := writes(source))} == {}


def test_the_scan_for_writers_sees():
    for source in ("path.write_text('')", "open('x', 'w')", "os.rename(a, b)", "np.save(path, x)", "save_file(x, p)"):
        assert writes(source)
    assert not writes("files.replace(path, [b''])\ntext.replace('a', 'b')\nnp.savez(buffer, x=x)")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from dill import loads",
        "import torch\ntorch.load('a')",
        "from torch import load",
        "torch.save(x, 'a')",
        "read = torch.load",
        "np.load('a.npy')",
        "np.load('a.npy', allow_pickle=True)",
        "numpy.load('a.npy', allow_pickle=flag)",
        "from numpy import load",
        "yaml.load(text)",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "os.system('ls')",
        "import marshal",
        "import shelve as s",
        "from joblib import load",
        "torch.serialization.load(f)",
        "yaml.unsafe_load(text)",
        "import torch as t\nt.load(f)",
        "import torch.serialization as s\ns.load(f)",
        "from torch import serialization as s\ns.load(f)",
        "import numpy as n\nn.load(f)",
        "import os as o\nrun = o.system",
        "np.lib.format.read_array(f, allow_pickle=True)",
        "format.read_array(f)",
        "read_array(f, True)",
        "open_memmap(f, allow_pickle=flag)",
    ],
)
def test_the_scan_sees(source: str):
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "read_array(f, allow_pickle=False)",
        "import json as t\nt.load(f)",
        "np.load('a.npy', mmap_mode='r', allow_pickle=False)",
        "yaml.safe_load(text)",
        "json.load(f)",
    ],
)
def test_the_scan_lets_pass(source: str):
    assert not violations(source)


# A process of its own, which prints what `import ppl_vae` did; the libraries it stands on are imported before it looks.
PROBE = """
import json, os, random, sys
import numpy, pyro, torch
opened, connected = [], []
def settings():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.settings.get("validate_poutine"),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": str(numpy.random.get_state()),
        "python random state": str(random.getstate()),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "numpy errors": str(numpy.geterr()),
    }
def watch(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        opened.append(str(arguments[0]))
    elif event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        connected.append(str(arguments))
before = settings()
sys.addaudithook(watch)
import ppl_vae
[getattr(ppl_vae, name) for name in ppl_vae.__all__]
after = settings()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "parameters": sorted(pyro.get_param_store().keys()),
    "opened": opened,
    "connected": connected,
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def probe() -> dict[str, list[str]]:
    # Three threads are nobody's default, so that a change of their number is seen on every machine.
    changes = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_changes_no_global_setting(probe: dict[str, list[str]]):
    assert probe["changed"] == []
    assert probe["parameters"] == []


def test_import_writes_no_file_and_touches_no_network(probe: dict[str, list[str]]):
    assert probe["opened"] == []
    assert probe["connected"] == []


@pytest.mark.parametrize(
    "module", ["matplotlib", "sklearn", "arviz", "pandas", "typer", "pooch", "scipy", "zuko", "xarray"]
)
def test_import_leaves_heavy_modules_for_later(probe: dict[str, list[str]], module: str):
    assert module not in probe["modules"]


def test_every_public_name_has_a_home():
    import ppl_vae

    assert all(hasattr(ppl_vae, name) for name in ppl_vae.__all__)
    assert {name for names in ppl_vae._HOMES.values() for name in names} < set(ppl_vae.__all__)
