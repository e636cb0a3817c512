"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sync_bn", "training", "service")
HEAVY = {"torch", "ray", "lightning", "mlflow", "numpy", "pandas", "sklearn", "matplotlib"}
LIGHT_PARTS_OF_TRAINING = {
    "training.backoff",
    "training.host.job_user",
    "training.host.own_folder",
    "training.metric_names",
    "training.noise_rule",
    "training.run_dir",
    "training.checkpoints.folder",
    "training.checkpoints.listing",
    "training.checkpoints.manifest",
    "training.checkpoints.retention",
    "training.hangs.rank_files",
    "training.hangs.stack_traces",
    "training.spec",
    "training.spec.arguments",
    "training.spec.environment",
    "training.spec.errors",
    "training.spec.layers",
    "training.spec.lightning_cli",
    "training.spec.lightning_values",
    "training.spec.model",
    "training.spec.norm",
    "training.spec.parts",
    "training.spec.reproducible",
    "training.spec.resources",
    "training.spec.script",
    "training.spec.short_names",
    "training.spec.source",
    "training.spec.start_from",
    "training.spec.sweep",
    "training.spec.text",
    "training.spec.time_limit",
    "training.spec.trainer",
    "training.spec.training",
    "training.protocol",
    "training.reserved",
    "training.tracking.run_tags",
    "training.versions",
}
LONGEST_FILE = 400
# What runs here is the training itself.
STARTS_TRAINING = {"service.cli.advise", "service.cli.train", "service.cli.verify"}
# Imported on a request for checkpoints in object storage. It loads pyarrow and no torch.
ON_REQUEST = {("service.checkpoints", "training.checkpoints.object_store")}
# Only the scheduler's process imports these.
ON_RAY = "service.backends.ray"


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def run_at_import(module: str) -> frozenset[ast.AST]:
    """Every node that importing the module evaluates: no bodies of functions, nothing that is for types."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for field, value in ast.iter_fields(node):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and field == "body":
                continue
            if (
                isinstance(node, ast.If)
                and ast.unparse(node.test).endswith("TYPE_CHECKING")
                and field == "body"
            ):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child)

    return frozenset(walk(tree_of(module)))


@cache
def imports_of(module: str) -> list[Import]:
    found = []
    for node in ast.walk(tree_of(module)):
        lazy = node not in run_at_import(module)
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, node.lineno, lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} has a relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append(Import(module, whole if whole in modules() else node.module, node.lineno, lazy))
    return found


def imports(package: str) -> list[Import]:
    return [found for module in modules() if top(module) == package for found in imports_of(module)]


def top(module: str) -> str:
    return module.partition(".")[0]


def is_stdlib(module: str) -> bool:
    return top(module) in sys.stdlib_module_names


def test_every_module_is_found() -> None:
    assert {"sync_bn.layer", "training.spec", "training.models", "service.api.app"} <= modules().keys()
    assert any(found.lazy for found in imports("training"))


def test_sync_bn_imports_torch_alone_its_plug_in_lightning_a_figure_matplotlib_and_kernels_triton() -> None:
    on_request = {
        ("sync_bn.lightning", "lightning"),
        ("sync_bn.diagnostics", "matplotlib"),
        ("sync_bn._triton_kernels", "triton"),
    }
    wrong = [
        found
        for found in imports("sync_bn")
        if not is_stdlib(found.imported)
        and top(found.imported) not in {"torch", "sync_bn"}
        and (found.importer, top(found.imported)) not in on_request
    ]
    assert not wrong
    assert all(found.lazy for found in imports("sync_bn") if found.imported == "sync_bn._triton_kernels")


def test_training_knows_no_service() -> None:
    assert not [found for found in imports("training") if top(found.imported) == "service"]


def test_nothing_imports_the_tests() -> None:
    tools = {"tests", "testing", "benchmarks"}
    assert not [found for package in PACKAGES for found in imports(package) if top(found.imported) in tools]


def test_tests_and_benchmarks_share_the_package_testing_alone() -> None:
    def imported_by(folder: str) -> set[str]:
        return {
            str(node.module)
            for path in (ROOT / folder).rglob("*.py")
            if not path.is_relative_to(ROOT / "tests" / "benchmarks")  # which are tests of these
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }

    assert not {module for module in imported_by("tests") if top(module) == "benchmarks"}
    assert not {module for module in imported_by("benchmarks") if top(module) == "tests"}
    assert not {module for module in imported_by("testing") if top(module) in {"tests", "benchmarks"}}


def test_service_knows_only_the_light_parts_of_training() -> None:
    wrong = [
        found
        for found in imports("service")
        if top(found.imported) in {"training", "sync_bn"}
        and found.imported not in LIGHT_PARTS_OF_TRAINING
        and not (found.lazy and found.importer in STARTS_TRAINING)
        and not (found.lazy and (found.importer, found.imported) in ON_REQUEST)
        and not found.importer.startswith(ON_RAY)
    ]
    assert not wrong


def test_service_imports_nothing_heavy_before_it_is_needed() -> None:
    assert not [
        found
        for found in imports("service")
        if not found.lazy
        and (top(found.imported) in HEAVY or found.imported.startswith(ON_RAY))
        and not found.importer.startswith(ON_RAY)
    ]


@pytest.mark.parametrize("module", sorted(LIGHT_PARTS_OF_TRAINING))
def test_what_the_service_knows_of_training_is_light(module: str) -> None:
    known = LIGHT_PARTS_OF_TRAINING | {"pydantic", "pydantic.fields", "yaml"}

    assert not [
        found for found in imports_of(module) if not is_stdlib(found.imported) and found.imported not in known
    ]


def test_no_import_leads_back_to_where_it_began() -> None:
    """Imports inside functions count."""
    graph = {
        module: {found.imported for found in imports_of(module)} & modules().keys() - {module}
        for module in modules()
    }
    assert cycle_in(graph) is None


def test_no_import_of_the_benchmarks_leads_back_to_where_it_began() -> None:
    paths = {name_of(path): path for path in (ROOT / "benchmarks").rglob("*.py")}
    graph = {}
    for module, path in paths.items():
        named = [
            (node.module, f"{node.module}.{alias.name}")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        graph[module] = {whole if whole in paths else str(part) for part, whole in named} & paths.keys()
    assert any(graph.values())
    assert cycle_in(graph) is None


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in graph:
            return None
        for imported in sorted(graph[module]):
            if cycle := visit(imported, [*path, module]):
                return cycle
        done.add(module)
        return None

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), None)


def room_of(module: str) -> str:
    """A package within a package; a module that is in none is a room of its own."""
    return ".".join(module.split(".")[:2])


def rooms() -> dict[str, str]:
    """Docstrings, by room."""
    return {
        name: ast.get_docstring(tree_of(name)) or ""
        for name, path in modules().items()
        if path.name == "__init__.py" and name.count(".") == 1
    }


def permissions(room: str) -> set[str]:
    """What the docstring names after "May import"; a name without its package is of the room's own."""
    _, _, listed = rooms()[room].partition("May import ")
    names = re.findall(r"`([\w.]+)`", listed.partition(".\n")[0])
    return {name if top(name) in PACKAGES else f"{top(room)}.{name}" for name in names}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_says_what_it_is_and_imports_what_it_may(room: str) -> None:
    assert "\n\nMay import " in rooms()[room]

    found = {
        room_of(found.imported) if top(found.imported) != "sync_bn" else "sync_bn"
        for module in modules()
        if room_of(module) == room
        for found in imports_of(module)
        if top(found.imported) in PACKAGES
    }
    assert found - {room} == permissions(room)


def test_no_room_leads_back_to_where_it_began() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        graph[room_of(module)] |= {
            room_of(found.imported) for found in imports_of(module) if found.imported in modules()
        } - {room_of(module)}
    assert cycle_in(graph) is None


def test_cycles_are_seen() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_reads_no_environment(package: str) -> None:
    wrong = [
        f"{module}:{node.lineno}"
        for module in modules()
        if top(module) == package
        for node in run_at_import(module)
        if isinstance(node, ast.Attribute | ast.Name) and reads_environment(node)
    ]
    assert not wrong


def reads_environment(node: ast.Attribute | ast.Name) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id
    return name in {"environ", "environb", "getenv"}


def test_no_file_is_too_long_to_read_at_once() -> None:
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()
    }

    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}
