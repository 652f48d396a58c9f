"""The shape of the code: layers, what a run loads, file sizes, no models in Python."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "compatkit"

#: The road data takes. A module imports what stands above it, plus itself and `vocabulary`.
LAYERS = [
    "vocabulary",
    "sources",
    "headers",
    "knowledge",
    "identify",
    "adapters",
    "stacks",
    "checks",
    "fetch",
    "convert",
    "hosts",
    "dryrun",
    "smoke",
    "render",
    "api",  # the two Python functions; the package itself imports it on call
    "cli",  # may import all
    "__main__",
]

#: What an ordinary check does without must not be loaded by the modules it runs through.
LIGHT = {"vocabulary", "sources", "headers", "knowledge", "identify", "adapters", "stacks", "checks", "render"}
HEAVY = {
    *("torch", "numpy", "yaml", "huggingface_hub", "fsspec"),
    *("http.client", "urllib.request", "urllib3", "requests", "httpx", "httpx2", "aiohttp"),
}

#: The one module that may import PyYAML at module level, and with it the rest of the rule compiler, which imports it.
YAML_READER = "compatkit.knowledge.yamlfile"
#: Modules outside `knowledge` that only `compatkit rules` runs: they may load the rule compiler too.
RULE_TOOLS = {"selftest", "draft"}

MAX_LINES = 450

#: Stems of model names, beside the ids that stand in `rules/families`.
STEMS = ["flux", "sdxl", "sd15", "sd3", "qwen", "gemma", "lumina", "wan2", "z_image", "hunyuan", "pixart", "t5xxl"]
#: Family ids that are also ordinary words of programming, or a role of the contract.
ORDINARY = {"pid", "lens", "mmproj", "span"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def layer(module: str) -> str:
    """`compatkit.headers.gguf` -> `headers`; the package itself -> ``."""
    return [*module.split("."), ""][1]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"


def statements(node: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """All nodes below `node`; with `at_import` only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and is_type_checking(child):
            yield from (n for statement in child.orelse for n in [statement, *statements(statement, at_import=True)])
            continue
        yield child
        yield from statements(child, at_import=at_import)


def imports(module: str, *, at_import: bool = False) -> set[str]:
    """Dotted names that a module imports, `from a import b` as both `a` and `a.b`."""
    names: set[str] = set()
    for node in statements(tree(module), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the layer"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_every_module_has_its_place_in_the_order() -> None:
    assert {layer(module) for module in MODULES} - {""} <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    own = layer(module)
    allowed = {"vocabulary", "api"} if own == "" else {"", *LAYERS[: LAYERS.index(own) + 1]}
    used = {layer(name) for name in imports(module) if is_within(name, {"compatkit"})} & set(LAYERS)
    assert used <= allowed, f"{module} imports {sorted(used - allowed)}, which stand below it"


def rule_compiler() -> set[str]:
    """Modules that load PyYAML by way of the YAML reader, and may: needed only when rules are compiled or tested."""
    found = {YAML_READER}
    may = {m for m in MODULES if layer(m) == "knowledge" or m.rpartition(".")[2] in RULE_TOOLS}
    while True:
        more = {m for m in may if imports(m, at_import=True) & found} - found
        if not more:
            return found
        found |= more


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in LIGHT])
def test_a_module_of_the_header_check_loads_nothing_heavy(module: str) -> None:
    loaded = imports(module, at_import=True)
    compiler = rule_compiler()
    assert "compatkit.knowledge" not in compiler, "the package itself must stay free of PyYAML"
    heavy = {name for name in loaded if is_within(name, HEAVY)}
    assert heavy == ({"yaml"} if module == YAML_READER else set()), f"{module}: import {heavy} where it is used"
    if module not in compiler:
        assert not loaded & compiler, f"{module}: import {loaded & compiler} where it is used"


def test_what_the_header_check_imports_loads_nothing_heavy_indirectly() -> None:
    light = [m for m in MODULES if layer(m) in LIGHT and m not in rule_compiler()]
    code = f"import sys, {', '.join(['compatkit', *light])}; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {name for name in ran.stdout.split() if is_within(name, HEAVY)} == set()


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = "import sys, compatkit; print(*[m for m in sys.modules if m.startswith('compatkit.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long_to_read(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: aim for 400, split by what changes together"


@cache
def model_names() -> re.Pattern[str]:
    """Matches a family id as a whole word, or the stem of a model name at the start of one (luminance is none)."""
    ids: set[str] = set()
    for path in (ROOT / "rules" / "families").rglob("*.yaml"):
        ids |= set(re.findall(r"^id:\s*[\"']?([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    whole = "|".join(sorted(map(re.escape, map(as_words, ids - ORDINARY)), key=len, reverse=True)) or "(?!)"
    return re.compile(rf"(?<![a-z0-9])(?:(?:{whole})(?![a-z0-9])|(?:{'|'.join(STEMS)})(?!nce))")


def as_words(text: str) -> str:
    """`ZImage`, `z-image` and `z image` -> `z_image`."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text).lower())


def names_and_strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier and string constant but docstrings: those explain and decide nothing."""
    docstrings = {
        id(n.body[0].value)
        for n in ast.walk(node)
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and n.body
        and isinstance(n.body[0], ast.Expr)
    }
    for n in ast.walk(node):
        if id(n) in docstrings:
            continue
        line = getattr(n, "lineno", 0)
        for field, value in ast.iter_fields(n):
            if field in ("id", "name", "attr", "arg", "asname", "module", "value", "rest") and isinstance(value, str):
                yield line, value
            elif isinstance(value, list):
                yield from ((line, item) for item in value if isinstance(item, str))


@pytest.mark.parametrize("module", MODULES)
def test_python_names_no_model(module: str) -> None:
    named = {
        f"line {line}: {text[:60]!r} names {found[0]}"
        for line, text in names_and_strings(tree(module))
        if (found := model_names().search(as_words(text)))
    }
    assert not named, "models are data and stand in rules/: " + "; ".join(sorted(named))


@pytest.mark.parametrize("text", ["flux", "load_flux1", "FluxLoader", "loadFlux", "Z-Image", "Qwen3-4B", "wan2.1 vae"])
def test_the_search_finds_a_model_name_however_it_is_written(text: str) -> None:
    assert model_names().search(as_words(text))


@pytest.mark.parametrize("text", ["influx", "diffusion", "unwanted", "image_size", "swan 2", "hidden", "getpid"])
def test_the_search_leaves_ordinary_words_alone(text: str) -> None:
    assert not model_names().search(as_words(text))
