"""What the site takes from the code at build time: tables (of methods, attacks, metrics, entry points, rooms) and the API's pages.

A page asks for a table by a comment of its own line, `<!-- generate: methods -->`; an unknown name fails the build. Build by
`python -m mkdocs` in the checkout, which puts the checkout first on the path.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pipelines.cli import mlproject
from pipelines.cli.parameters import Parameter, parameters, to_text
from safemax import attacks
from safemax.evaluation import verdict
from safemax.evaluation.metric_info import infos
from safemax.methods import available

ROOT = Path(__file__).parents[1]

API = "api"  # folder of the generated pages
ASKED_FOR = re.compile(r"^<!-- generate: (\w+)(?: (\S+))? -->$", re.MULTILINE)
FOR_RAW_READERS = (
    "*This is the raw file: `make docs` builds the page (build/site), with the code's tables in place of each `generate` "
    "comment.*\n\n"
)
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)]+)\)")  # a link to a file of the repository that is not in docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each room of the library."""
    for room in _rooms("safemax"):
        files.append(File.generated(config, f"{API}/{room.name}.md", content=_api_page(room)))
    for path in _pictures():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page asks for, and point at the repository's own files by name."""
    markdown = markdown.replace(FOR_RAW_READERS, "")
    markdown = ASKED_FOR.sub(lambda found: _GENERATORS[found[1]](found[2] or ""), markdown)
    return OUTSIDE.sub(
        lambda found: found[0].replace("(../", "(") if found[1] else f"{found[2]} (`{found[3]}`)", markdown
    )


def methods(_: str = "") -> str:
    """Return the table of methods."""
    return mlproject.method_table(available())


def attack_table(_: str = "") -> str:
    """Return the table of attacks."""
    rows = [
        (
            f"`{name}`",
            _about(attack),
            mlproject.linked(attack.source),
            " ".join(f"`{each.name}={to_text(each.default)}`" for each in parameters(attack)) or "none",
        )
        for name, attack in attacks.available().items()
    ]
    return _table(("attack", "what it does", "source", "knobs and defaults"), rows)


def metrics(group: str) -> str:
    """Return the table of the metrics whose key begins with `group/`."""
    rows = [
        (f"`{name}`", about.text, about.unit, about.better)
        for name, about in infos().items()
        if name.split("/")[0] == group
    ]
    if not rows:
        raise LookupError(f"no metric begins with {group}/")
    return _table(("key", "meaning", "unit", "better"), rows)


def entry_points(_: str = "") -> str:
    """Return a section for each entry point, with the parameters of each of its groups."""
    return "\n\n".join(_entry(entry) for entry in mlproject.entries())


def rooms(floor: str) -> str:
    """Return the folders of a floor: what each holds, and which others of the floor it may import."""
    may_import = _layering()
    rows = []
    for room in [inner for outer in _rooms(floor) for inner in (outer, *_rooms(str(outer.relative_to(ROOT))))]:
        name = str(room.relative_to(ROOT))
        below = ", ".join(f"`{each}`" for each in sorted(may_import[name])) or "nothing"
        rows.append((f"`{name}/`", _first_line(room / "__init__.py"), below))
    return _table(("folder", "what is in it", "may import"), rows)


def files_of(folder: str) -> str:
    """Return the files of a folder with the first line of their docstrings."""
    paths = [each for each in sorted((ROOT / folder).glob("*.py")) if each.name != "__init__.py"]
    return _table(("file", "what is in it"), [(f"`{folder}/{path.name}`", _first_line(path)) for path in paths])


def gates(_: str = "") -> str:
    """Return the gates with their comments."""
    return f"```yaml\n{(ROOT / 'pipelines' / 'registry' / 'gates.yaml').read_text(encoding='utf-8')}```"


def outcomes(_: str = "") -> str:
    """Return what a verdict may conclude."""
    return _table(("outcome", "meaning"), [(f"`{name}`", text) for name, text in verdict.OUTCOMES.items()])


def flags(_: str = "") -> str:
    """Return the flags beside a verdict."""
    return _table(("flag", "meaning"), [(f"`{name}`", text) for name, text in verdict.FLAGS.items()])


def api(_: str = "") -> str:
    """Return a list of the rooms' pages."""
    return "\n".join(
        f"- [safemax.{room.name}]({API}/{room.name}.md): {_first_line(room / '__init__.py')}"
        for room in _rooms("safemax")
    )


def changelog(_: str = "") -> str:
    """Return CHANGELOG.md without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


_GENERATORS: dict[str, Callable[[str], str]] = {
    "methods": methods,
    "attacks": attack_table,
    "metrics": metrics,
    "entry_points": entry_points,
    "rooms": rooms,
    "files": files_of,
    "gates": gates,
    "outcomes": outcomes,
    "flags": flags,
    "api": api,
    "changelog": changelog,
}


def _entry(entry: mlproject.Entry) -> str:
    of_method = "method" in entry.fixed
    module = "safemax.methods." + entry.name if of_method else entry.module
    groups = {entry.name: entry.groups[entry.name]} if of_method else entry.groups
    call = f"python -m {entry.module}{''.join(f' --{name}={value}' for name, value in entry.fixed.items())}"
    parts = [f"## {entry.name}", (import_module(module).__doc__ or "").strip(), f"`{call}`"]
    if of_method:
        parts.append("Further parameters: those of [`unlearn`](#safemax), with the method's own training defaults.")
    parts += [f"**{title}**\n\n{_parameters(group, entry)}" for title, group in groups.items() if parameters(group)]
    return "\n\n".join(parts)


def _parameters(group: type, entry: mlproject.Entry) -> str:
    rows = [
        (f"`{each.name}`", _default(each), each.about.doc, each.allowed)
        for each in parameters(group)
        if each.name not in entry.fixed
    ]
    return _table(("parameter", "default", "meaning", "allowed"), rows)


def _default(parameter: Parameter) -> str:
    return f"`{to_text(parameter.default)}`" if to_text(parameter.default) else "empty"


def _api_page(room: Path) -> str:
    title = f"# safemax.{room.name}\n\n{_first_line(room / '__init__.py')}"
    files = sorted(each.relative_to(ROOT) for each in room.rglob("*.py") if each.stem != "__init__")
    return "\n\n".join([title, *(f"::: {'.'.join(each.with_suffix('').parts)}" for each in files)]) + "\n"


def _rooms(floor: str) -> list[Path]:
    return sorted(each.parent for each in (ROOT / floor).glob("*/__init__.py"))


def _layering() -> dict[str, set[str]]:
    """Return what each folder may import, from the test that holds it."""
    tree = ast.parse((ROOT / "tests" / "test_layering.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT"
    )
    return {key: set(allowed) for key, allowed in eval(ast.unparse(value), {"set": set}).items()}  # noqa: S307


def _pictures() -> Iterator[str]:
    """Yield the pictures that pages show and that lie outside docs/."""
    pages = "".join(each.read_text(encoding="utf-8") for each in sorted((ROOT / "docs").glob("*.md")))
    yield from dict.fromkeys(path for image, _, path in OUTSIDE.findall(pages) if image)


def _about(attack: type[attacks.Attack]) -> str:
    return (import_module(attack.__module__).__doc__ or "").split("\n")[0].rstrip(".")


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (doc or "").split("\n")[0]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
