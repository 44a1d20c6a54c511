"""Every field of the manifest is read by something that acts on it, in each world.

Sources are read, not run: an attribute counts as read if the expression before it has, by the
annotations, the type of the part that the field belongs to. So a field whose last reader goes is
found here, by its path and the world that ignores it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from forkcast_wire.fields import Part
from forkcast_wire.manifest import TrainingRun, TrainingRunSpec

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "protos", "trainer", "monitor_svc", "proxy_svc", "operator", "watch", "cli")
#: Fields whose use is the model's own check.
PERMITS = {"spec.branching.research"}
LOCAL = ("cli/", "manifest_file.py", "forkcast_operator/__main__.py", "forkcast_operator/local.py")
CLUSTER = ("forkcast_operator/kubernetes/",)


def part_of(annotation: Any) -> type[Part] | None:
    """The part that an annotation holds, itself or in a container."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for one in get_args(annotation) if (found := part_of(one))), None)


def leaves(part: type[Part], path: str = "spec", *, only: bool = False) -> Iterator[tuple]:
    """(path, part, field, whether only a cluster reads it) of every field below."""
    for name, info in part.model_fields.items():
        inner, where = part_of(info.annotation), f"{path}.{info.alias or name}"
        pods = only or "Kubernetes only" in (info.description or "")
        if inner is None:
            yield where, part, name, pods
        else:
            pods = pods or "Kubernetes only" in (inner.__doc__ or "")
            yield from leaves(inner, where, only=pods)


def parts(part: type[Part]) -> set[type[Part]]:
    inner = [part_of(info.annotation) for info in part.model_fields.values()]
    return {part}.union(*(parts(one) for one in inner if one is not None))


KNOWN = {one.__name__: one for one in parts(TrainingRunSpec)} | {"Manifest": TrainingRun}


def named(annotation: ast.expr | None) -> type[Part] | None:
    """The part that an annotation in source names."""
    for node in ast.walk(annotation) if annotation is not None else ():
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        if name == "TrainingRun" or name in KNOWN:
            return KNOWN.get(name, TrainingRun)
    return None


class Readers(ast.NodeVisitor):
    """(part, field) -> files in which it is read."""

    def __init__(self) -> None:
        self.found: dict[tuple[type[Part], str], set[str]] = defaultdict(set)
        self.returned: dict[str, type[Part]] = {}
        self.attributes: dict[str, type[Part]] = {}
        self.held: dict[str, dict[str, type[Part]]] = defaultdict(dict)
        self.bases: dict[str, list[str]] = {}
        self._file, self._scope, self._class = "", {}, ""

    def declare(self, tree: ast.Module) -> None:
        """What functions return and what attributes hold, by name."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.bases[node.name] = [one.id for one in node.bases if isinstance(one, ast.Name)]
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef):
                        self._held(node.name, inner)
            kind = None
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if kind := named(node.returns):
                    self.returned[node.name] = kind
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = named(node.annotation)
                if kind is not None:
                    self.attributes[node.target.id] = kind

    def _held(self, owner: str, function: ast.FunctionDef) -> None:
        """What a class keeps of what it is given."""
        given = {one.arg: named(one.annotation) for one in _arguments(function)}
        for node in ast.walk(function):
            for target, value in _pairs(node.targets[0], node.value) if _assigns(node) else ():
                if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                    kind = given.get(value.id)
                    if kind is not None:
                        self.held[owner][target.attr] = self.attributes[target.attr] = kind

    def _own(self, owner: str, attr: str) -> type[Part] | None:
        if attr in self.held[owner]:
            return self.held[owner][attr]
        found = (self._own(base, attr) for base in self.bases.get(owner, ()))
        return next((one for one in found if one is not None), None)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def read(self, file: str, tree: ast.Module) -> None:
        self._file, self._scope = file, {}
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if any("validator" in ast.unparse(one) for one in node.decorator_list):
            return  # a check is no use
        outer = self._scope
        self._scope = dict(outer)
        if self._class in KNOWN:
            self._scope["self"] = KNOWN[self._class]
        for one in _arguments(node):
            if kind := named(one.annotation):
                self._scope[one.arg] = kind
        self.generic_visit(node)
        self._scope = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Assign(self, node: ast.Assign) -> None:
        for target, value in _pairs(node.targets[0], node.value):
            if isinstance(target, ast.Name) and (kind := self.kind(value)):
                self._scope[target.id] = kind
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        if kind := self.kind(node.value):
            self._scope[node.target.id] = kind
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._element(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._element(node.target, node.iter)
        self.generic_visit(node)

    def _each(self, node: Any) -> None:
        for one in node.generators:  # before the element that they bind names for
            self.visit(one)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = _each  # noqa: N815
    visit_GeneratorExp = visit_DictComp = _each  # noqa: N815

    def _element(self, target: ast.expr, among: ast.expr) -> None:
        names = [one for one in ast.walk(target) if isinstance(one, ast.Name)]
        for node in ast.walk(among):
            if names and isinstance(node, ast.expr) and (kind := self.kind(node)):
                self._scope[names[-1].id] = kind
                return

    def visit_Attribute(self, node: ast.Attribute) -> None:
        kind = self.kind(node.value)
        if kind is not None and node.attr in kind.model_fields:
            self.found[kind, node.attr].add(self._file)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr.startswith("model_dump"):
            kind = self.kind(function.value)
            if kind is not None and kind not in (TrainingRunSpec, TrainingRun):
                for _, part, name, _ in leaves(kind):
                    self.found[part, name].add(self._file)
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="spec"), attr="get"),
                args=[ast.Constant(value=str(alias)), *_],
            ):  # of an object as the API server gives it, whose spec may be wrong
                for name, info in TrainingRunSpec.model_fields.items():
                    if alias == (info.alias or name):
                        self.found[TrainingRunSpec, name].add(self._file)
        self.generic_visit(node)

    def kind(self, node: ast.expr) -> type[Part] | None:
        """The part that an expression is, or holds."""
        match node:
            case ast.Name(id=name):
                return self._scope.get(name)
            case ast.Attribute(value=value, attr=attr):
                base = self.kind(value)
                if base is None:
                    mine = isinstance(value, ast.Name) and value.id == "self"
                    own = self._own(self._class, attr) if mine else None
                    return own or self.attributes.get(attr)
                info = base.model_fields.get(attr)
                return part_of(info.annotation) if info else None
            case ast.BoolOp(values=values):
                return next((found for one in values if (found := self.kind(one))), None)
            case ast.IfExp(body=body, orelse=other):
                return self.kind(body) or self.kind(other)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return self.returned.get(name)
            case ast.Subscript(value=value):
                return self.kind(value)
        return None


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _assigns(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign)


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


@pytest.fixture(scope="module")
def readers() -> dict:
    trees = {}
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                trees[str(path.relative_to(ROOT))] = ast.parse(path.read_text())
    made = Readers()
    for tree in trees.values():
        made.declare(tree)
    for name, tree in trees.items():
        made.read(name, tree)
    for part, name in {(part, name) for _, part, name, _ in FIELDS}:
        for base in part.__mro__[1:]:  # who reads the field of a part reads it of what is one
            made.found[part, name] |= made.found.get((base, name), set())
    return made.found


def _in(world: tuple[str, ...], files: set[str]) -> bool:
    """Whether one of the files runs in that world: its own, or one that both share."""
    other = CLUSTER if world is LOCAL else LOCAL
    return any(not any(mark in file for mark in other) for file in files)


FIELDS = [one for one in leaves(TrainingRunSpec) if one[0] not in PERMITS]


def test_no_field_is_ignored_on_a_cluster(readers) -> None:
    dead = [path for path, part, name, _ in FIELDS if not _in(CLUSTER, readers[part, name])]
    assert dead == []


def test_no_field_is_ignored_on_one_machine_unless_it_says_so(readers) -> None:
    dead = [
        path
        for path, part, name, pods in FIELDS
        if not pods and not _in(LOCAL, readers[part, name])
    ]
    assert dead == []


def test_every_field_is_walked() -> None:
    paths = {path for path, *_ in FIELDS}
    assert {"spec.branching.executor", "spec.podPatch.env.name", "spec.suspend"} <= paths
    assert len(paths) == len(FIELDS) > 100


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def f(spec: TrainingRunSpec): return spec.proxy.mode", True),
        ("def f(spec: TrainingRunSpec):\n proxy = spec.proxy\n return proxy.mode", True),
        (
            "class A:\n def __init__(self, p: Proxy): self.p = p\n def g(self): return self.p.mode",
            True,
        ),
        ("def f(spec: TrainingRunSpec): return spec.branching.mode", False),
        ("def f(other: Other): return other.proxy.mode", False),
        ("def f(spec: TrainingRunSpec): return spec.model_dump()", False),
    ],
)
def test_a_reader_is_told_from_a_namesake(source, read) -> None:
    made, tree = Readers(), ast.parse(source)
    made.declare(tree)
    made.read("a.py", tree)
    (mode,) = [one for one in FIELDS if one[0] == "spec.proxy.mode"]
    assert bool(made.found[mode[1], mode[2]]) is read
