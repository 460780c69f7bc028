"""The folder listing is the dependency graph: imports point one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ppl_vae"

FOUNDATION = {
    *("errors", "kl", "supports", "rng", "mapped", "arrays", "distributed", "device", "progress", "history"),
    *("validation", "pareto", "options", "operations", "wording", "averages", "threads", "shrinking", "storage"),
    "libraries",
    "narrowing",
    "distances",
    "nans",
}
CORE = {
    *(
        "discovery",
        "contents",
        "naming",
        "holders",
        "attributes",
        "portable",
        "belongings",
        "pair",
        "tape",
        "drawn",
        "reductions",
        "roundings",
        "along",
        "terms",
        "coordinates",
        "checking",
    ),
    *("weights", "schedules", "objectives", "diagnosis", "rundir", "compile", "svi", "evaluation"),
}
ZOO = {
    *("distributions", "networks", "flows", "drawing", "priors", "encoders", "decoders", "vae", "hierarchical"),
    *("conditional", "autoregressive", "autoencoder"),
}
EDGES = {"data", "figures", "report", "recipes", "demo", "cli", "__main__"}

# Every part of the package and the parts it may import. A new file is placed here, or the first test below fails.
MAY_IMPORT = {
    "errors": set(),
    "kl": {"errors"},
    "supports": {"errors"},
    "rng": {"errors", "options"},
    "mapped": {"errors"},
    "arrays": {"errors", "mapped"},
    "distributed": {"errors"},
    "device": {"errors"},
    "progress": {"errors"},
    "history": {"errors"},
    "validation": {"errors"},
    "options": set(),
    "operations": set(),
    "wording": set(),
    "averages": {"options"},
    "threads": {"errors"},
    "shrinking": {"errors"},
    "pareto": set(),
    "libraries": set(),
    "distances": set(),
    "nans": set(),
    "narrowing": {"arrays", "errors"},
    "storage": {"errors", "options", "wording"},
    "discovery": FOUNDATION,
    "contents": set(),
    "naming": {"contents"},
    "holders": FOUNDATION | {"discovery", "naming"},
    "attributes": FOUNDATION | {"holders", "contents", "naming"},
    "portable": FOUNDATION | {"attributes", "contents"},
    "belongings": FOUNDATION | {"discovery", "attributes", "contents", "naming", "portable"},
    "pair": FOUNDATION | {"discovery", "attributes", "contents"},
    "tape": FOUNDATION | {"pair"},
    "drawn": FOUNDATION | {"tape"},
    "reductions": FOUNDATION | {"tape"},
    "roundings": FOUNDATION | {"tape", "reductions", "libraries"},
    "along": FOUNDATION | {"pair", "tape", "reductions"},
    "terms": FOUNDATION | {"pair", "tape", "reductions", "along"},
    "coordinates": FOUNDATION | {"tape", "reductions"},
    "checking": FOUNDATION | {"contents", "pair", "tape", "reductions", "roundings", "terms"},
    "diagnosis": FOUNDATION | {"pair", "tape", "reductions", "terms", "objectives"},
    "rundir": FOUNDATION | {"belongings", "pair", "storage"},
    "weights": FOUNDATION,
    "schedules": FOUNDATION,
    "objectives": FOUNDATION | {"pair", "tape", "terms", "weights", "schedules"},
    "compile": FOUNDATION | {"attributes"},
    "svi": FOUNDATION | CORE - {"svi", "evaluation"},
    "evaluation": FOUNDATION | CORE - {"evaluation"} | {"latents"},
    "distributions": FOUNDATION,
    "networks": FOUNDATION,
    "flows": FOUNDATION | {"contents"},
    "drawing": FOUNDATION,
    "priors": FOUNDATION | {"networks", "flows"},
    "encoders": FOUNDATION | {"networks", "flows"},
    "decoders": FOUNDATION | {"distributions", "networks"},
    "vae": FOUNDATION | {"networks", "drawing", "priors", "encoders", "decoders"},
    "hierarchical": FOUNDATION | {"networks", "drawing", "priors", "encoders", "decoders"},
    "conditional": FOUNDATION | {"networks", "drawing", "priors", "encoders", "decoders"},
    "autoregressive": FOUNDATION | {"networks", "drawing"},
    "autoencoder": FOUNDATION | {"networks", "drawing", "decoders"},
    "exact": FOUNDATION | {"networks"},
    "selftesting": FOUNDATION | CORE | {"exact"},
    "quality": FOUNDATION,
    "latents": FOUNDATION,
    "data": FOUNDATION,
    "figures": FOUNDATION,
    "report": FOUNDATION,
    "recipes": FOUNDATION | ZOO,
    "demo": FOUNDATION | CORE | ZOO | {"exact"} | EDGES - {"cli", "demo"},
    "cli": FOUNDATION | CORE | ZOO | {"exact", "selftesting"} | EDGES | {"__init__"},
    "__main__": {"cli"},
    "__init__": FOUNDATION | CORE | ZOO | {"exact", "selftesting", "quality", "latents", "data", "figures"},
}


def part_of(module: str) -> str:
    """The part a dotted module belongs to: `ppl_vae.exact.gmm` is of `exact`, `ppl_vae` itself is `__init__`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def module_name(path: Path) -> str:
    """`exact/gmm.py` as `ppl_vae.exact.gmm`; a package's `__init__.py` as the package."""
    names = ["ppl_vae", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


class WithoutAnnotationImports(ast.NodeTransformer):
    """Drops `if TYPE_CHECKING:` blocks."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imported(source: str, module: str, is_package: bool, at_run_time: bool = False) -> set[str]:
    """Dotted modules of ppl_vae that `source` imports anywhere; `at_run_time` leaves out those for annotations."""
    tree = ast.parse(source)
    found: set[str] = set()
    for node in ast.walk(WithoutAnnotationImports().visit(tree) if at_run_time else tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            submodules = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            names = {alias.name for alias in node.names if f"{base}.{alias.name}" not in MODULES}
            found |= submodules | ({base} if names or not node.names else set())
    return {name for name in found if name.split(".")[0] == "ppl_vae"}


def imports_of(module: str, at_run_time: bool = False) -> set[str]:
    path = MODULES[module]
    return imported(path.read_text(encoding="utf-8"), module, path.name == "__init__.py", at_run_time)


def test_every_module_is_placed():
    """One that is not is added to MAY_IMPORT, in the layer that it serves."""
    assert [module for module in MODULES if part_of(module) not in MAY_IMPORT] == []


def test_imports_point_one_way():
    assert {module: forbidden for module in MODULES if (forbidden := forbidden_imports(module))} == {}


def forbidden_imports(module: str) -> list[str]:
    part = part_of(module)
    return sorted(name for name in imports_of(module) if part_of(name) not in MAY_IMPORT.get(part, set()) | {part})


def test_modules_form_no_cycle():
    # An `__init__` gathers the modules of its package, and an annotation may name a sibling: neither runs in a circle.
    modules = [module for module, path in MODULES.items() if path.name != "__init__.py"]
    graph = {module: imports_of(module, at_run_time=True) - {module} for module in modules}
    TopologicalSorter(graph).prepare()


def test_the_inference_core_knows_no_model():
    for part in FOUNDATION | CORE:
        assert not MAY_IMPORT[part] & (ZOO | EDGES | {"exact", "__init__"}), part


def test_exact_models_know_no_estimator():
    assert not MAY_IMPORT["exact"] & CORE


def test_edges_are_imported_by_edges_only():
    inside = MAY_IMPORT.keys() - EDGES - {"__init__"}
    assert not [part for part in inside if MAY_IMPORT[part] & EDGES]
    assert MAY_IMPORT["__init__"] & EDGES == {"data", "figures"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ppl_vae.errors", {"ppl_vae.errors"}),
        ("from ppl_vae import errors", {"ppl_vae.errors"}),
        ("from ppl_vae import Pair", {"ppl_vae"}),
        ("from ppl_vae.errors import DataError", {"ppl_vae.errors"}),
        ("from ..errors import DataError", {"ppl_vae.errors"}),
        ("from .. import errors", {"ppl_vae.errors"}),
        ("def f():\n    from ppl_vae.errors import DataError", {"ppl_vae.errors"}),
        ("import torch\nfrom pyro import poutine", set()),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, expected: set[str]):
    assert imported(source, "ppl_vae.exact.gmm", is_package=False) == expected


def test_annotations_count_for_layers_but_not_for_cycles():
    source = "if TYPE_CHECKING:\n    from ppl_vae.errors import DataError"
    assert imported(source, "ppl_vae.kl", is_package=False) == {"ppl_vae.errors"}
    assert imported(source, "ppl_vae.kl", is_package=False, at_run_time=True) == set()


def test_the_map_of_the_house_names_every_part():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = MAY_IMPORT.keys() - {"__init__"}
    assert [part for part in parts if f"`{part}`" not in text and f"`{part}/`" not in text] == []


def test_what_tests_share_is_no_test_file():
    """A file of tests may be renamed or split without breaking another."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    assert {path.name: found for path in files if (found := imports_of_tests(path))} == {}


def imports_of_tests(path: Path) -> list[str]:
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    return [name for name in names if name and name.split(".")[-1].startswith("test_")]
