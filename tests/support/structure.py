"""Who imports what in a package, read off its source: in functions, for type checkers and by `importlib`, too."""

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Import:
    """One name that one module takes from another, or another module as a whole.

    Attributes:
        importer, imported: dotted names; `imported` is of the package, or the name of somebody else's module.
        name: what is taken, `None` for the module itself.
        bound: what it is called in `importer`, `None` where nothing is bound.
    """

    importer: str
    imported: str
    name: str | None = None
    bound: str | None = None


class Package:
    """The modules of a package and their imports.

    Args:
        folder: of the package; its name is the package's.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        files = {path.relative_to(folder).with_suffix("").parts: path for path in sorted(folder.rglob("*.py"))}
        self.files = {".".join([self.name, *_without_init(parts)]): path for parts, path in files.items()}
        self.trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.files.items()}

    def imports_of(self, module: str) -> set[Import]:
        path, tree = self.files[module], self.trees[module]
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        return set(self.imports_in(tree, module, here))

    def imports_in(self, tree: ast.AST, importer: str, here: str) -> Iterator[Import]:
        """What a piece of source imports that lies in the package `here`, wherever it says so."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(importer, alias.name, None, alias.asname or alias.name)
            elif isinstance(node, ast.ImportFrom):
                source = _absolute("." * node.level + (node.module or ""), here)
                for alias in node.names:
                    whole = f"{source}.{alias.name}" in self.files
                    imported, name = (f"{source}.{alias.name}", None) if whole else (source, alias.name)
                    yield Import(importer, imported, name, alias.asname or alias.name)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "import_module",
                "__import__",
            ):
                yield from (Import(importer, name) for name in self._named(node, tree, here))

    def _named(self, call: ast.Call, tree: ast.AST, here: str) -> list[str]:
        """What a call of `import_module` may import: where that is computed, all our modules that the file names."""
        target = call.args[0] if call.args else None
        if isinstance(target, ast.Constant) and isinstance(target.value, str):
            return [_absolute(target.value, here)]
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        found = {form for word in words if word.strip(".") for form in (word, f"{here}.{word}", _absolute(word, here))}
        return sorted(found & self.files.keys())

    def graph(self) -> dict[str, set[str]]:
        """Module of the package → modules of the package that it imports."""
        return {
            module: {found.imported for found in self.imports_of(module)} & self.files.keys() - {module}
            for module in self.files
        }

    def room_of(self, module: str) -> str:
        """The folder or file right below the package that a module lies in."""
        return module.split(".")[1] if "." in module else "__init__"


def _without_init(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if parts[-1] == "__init__" else parts


def _absolute(name: str, here: str) -> str:
    rest = name.lstrip(".")
    dots = len(name) - len(rest)
    if not dots:
        return name
    base = here.split(".")[: len(here.split(".")) - dots + 1]
    return ".".join([*base, *([rest] if rest else [])])


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches every other by imports."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


def _reached(graph: Mapping[str, Collection[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [*graph[start]]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += graph[module]
    return found


def upward(package: Package, order: Sequence[Collection[str]]) -> list[str]:
    """Imports from above, "importer → imported", and modules that have no place.

    Args:
        order: rooms from the top down; those of one row may not import one another.
    """
    level = {room: number for number, row in enumerate(order) for room in row}
    homeless = {package.room_of(module) for module in package.files} - level.keys()
    wrong = [f"{room} has no place" for room in homeless]
    for module, imported in package.graph().items():
        for other in imported:
            one, two = package.room_of(module), package.room_of(other)
            if one != two and {one, two}.isdisjoint(homeless) and level[two] <= level[one]:
                wrong.append(f"{module} → {other}")
    return sorted(wrong)


def private_imports(package: Package, files: Mapping[str, Path]) -> list[str]:
    """Names with a leading underscore that files take from modules of the package or of the tests.

    Args:
        files: by how they are called in what is returned, "file: module._name".
    """
    found = set()
    for called, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = next((name for name, own in package.files.items() if own == path), None)
        here = "" if module is None else module if path.name == "__init__.py" else module.rpartition(".")[0]
        imports = list(package.imports_in(tree, called, here))
        taken = [(one.imported, one.name) for one in imports if one.name and not _is_foreign(one.imported, package)]
        modules = {one.bound: one.imported for one in imports if one.bound and _is_module(one, package)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
                taken.append((modules[ast.unparse(node.value)], node.attr))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                source, _, name = node.value.rpartition(".")
                taken += [(source, name)] if source in package.files else []
        found |= {f"{called}: {source}.{name}" for source, name in taken if _is_private(name)}
    return sorted(found)


def _is_foreign(module: str, package: Package) -> bool:
    return module.partition(".")[0] not in (package.name, "support")


def _is_module(one: Import, package: Package) -> bool:
    return one.imported in package.files if one.name is None else f"{one.imported}.{one.name}" in package.files


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def travelling(package: Package, start: str) -> set[str]:
    """A module of the package and all of the package that it needs: what is copied beside a checkpoint."""
    graph = package.graph()
    return {start} | _reached(graph, start)


def foreign_imports(package: Package, modules: Collection[str], allowed: Collection[str]) -> list[str]:
    """Imports of packages that are neither allowed, nor of the standard library, nor among the modules themselves."""
    known = {*allowed, *sys.stdlib_module_names}
    return sorted(
        f"{module} → {one.imported}"
        for module in modules
        for one in package.imports_of(module)
        if one.imported not in modules and one.imported.partition(".")[0] not in known
    )


def imported_tests(files: Mapping[str, Path]) -> list[str]:
    """Test modules that files import, "file → module"."""
    modules = {path.stem for path in files.values() if path.stem.startswith("test_")}
    found = set()
    for called, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = getattr(node, "module", None) or ""
                parts = {part for alias in node.names for part in f"{source}.{alias.name}".split(".")}
                found |= {f"{called} → {part}" for part in parts & modules}
    return sorted(found)


def long_files(files: Mapping[str, Path], most: int) -> dict[str, int]:
    """Files of more lines than that, with how many they have."""
    lines = {called: len(path.read_text(encoding="utf-8").splitlines()) for called, path in files.items()}
    return {called: count for called, count in lines.items() if count > most}
