"""The shape of the project: who may import whom, what stays light, and how long a thing may be."""

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.config import load_config

ROOT = Path(__file__).resolve().parents[1]
TASKS = sorted(folder.name for folder in (ROOT / "tasks").iterdir() if (folder / "__init__.py").exists())
TASK_FILES = ["__init__", "__main__", "config", "corpus", "features", "data", "model", "decode", "score", "task"]
LEAVES = ["recurrent", "decoding", "text", "tiny_world", "batching", "losses", "metrics"]
HEAVY = ["tensorflow", "tensorflow_datasets", "keras", "matplotlib", "tokenizers", "sacrebleu", "PIL"]

FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("shared", "tasks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def files_in(folder):
    """(name, syntax tree) of the files in a folder, or of the one file of that name."""
    return [(name, tree) for name, tree in FILES.items() if name.startswith(f"{folder}/") or name == f"{folder}.py"]


def imports_of(name, tree):
    """Dotted names of everything a file imports, at its top or inside a function: `from a import b` is a.b."""
    package = Path(name).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            before = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*before, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def inside(imported, package):
    return imported == package or imported.startswith(f"{package}.")


def offences(folder, forbidden):
    """`file imports name` for every import in a folder of which `forbidden(name)` is true."""
    return [
        f"{name} imports {imported}"
        for name, tree in files_in(folder)
        for imported in imports_of(name, tree)
        if forbidden(imported)
    ]


def test_imports_are_seen_wherever_they_stand():
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    from i.j import k\n"
    found = list(imports_of("tasks/one/model.py", ast.parse(source)))
    assert found == ["a.b", "c.d", "tasks.one.e", "tasks.f.g", "i.j.k"]


def test_shared_never_imports_tasks():
    assert offences("shared", lambda imported: inside(imported, "tasks")) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_task_never_imports_another(task):
    others = [f"tasks.{other}" for other in TASKS if other != task]
    assert offences(f"tasks/{task}", lambda imported: any(inside(imported, other) for other in others)) == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_nothing_shared_but_itself(leaf):
    allowed = (f"shared.{leaf}", "shared.config.UserError", "shared.cpu", "shared.memory")
    foreign = offences(
        f"shared/{leaf}",
        lambda imported: inside(imported, "shared") and not any(inside(imported, name) for name in allowed),
    )
    assert foreign == [] and files_in(f"shared/{leaf}")


@pytest.mark.parametrize("task", TASKS)
def test_files_of_a_task_import_only_from_files_to_their_left(task):
    for name, tree in files_in(f"tasks/{task}"):
        stem = Path(name).stem
        left = {"config"} if stem == "__main__" else set(TASK_FILES[2 : TASK_FILES.index(stem)])
        left -= {"corpus", "data"} if stem == "model" else set()
        own = {imported.split(".")[2] for imported in imports_of(name, tree) if inside(imported, f"tasks.{task}")}
        late = {"task"} if stem == "__main__" else set()  # loaded inside a function, once the arguments are checked
        assert own <= left | late, name


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_same_files_as_every_other(task):
    folder = ROOT / "tasks" / task
    names = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert names == sorted([*(f"{stem}.py" for stem in TASK_FILES), "README.md"])
    assert (ROOT / "configs" / task / "quickstart.yaml").exists()


def test_omegaconf_stays_in_one_file():
    users = [name for name, tree in FILES.items() for used in imports_of(name, tree) if inside(used, "omegaconf")]
    assert set(users) == {"shared/config.py"}


def test_shared_logs_and_does_not_print():
    calls = [(name, node) for name, tree in files_in("shared") for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [name for name, node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"] == []


def test_what_answers_at_once_loads_nothing_heavy():
    light = ["shared.cli", "shared.config", "shared.task", "shared.run"]
    light += [f"tasks.{task}.{name}" for task in TASKS for name in ("config", "__main__")]
    code = f"import sys, {', '.join(light)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("tests/")])
def test_files_and_functions_can_be_read_in_one_go(name):
    functions = [node for node in ast.walk(FILES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - first_line(node) + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 70} == {}
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 400


def first_line(function):
    """Of the body, behind the docstring, which may be as long as it needs to be."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return first.lineno


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("tests/")])
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(FILES[name])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_load_and_open_with_what_to_expect(path):
    program = importlib.import_module(f"tasks.{path.parent.name}.__main__").PROGRAM
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert load_config(program.config_class, path, ["data.dir=corpus"])


def test_make_has_targets_for_every_task():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = dict(
        line.removeprefix("folder-").split(" := ")
        for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
        if line.startswith("folder-")
    )
    assert sorted(folders.values()) == TASKS
    for name in folders:
        assert all(f"{verb}-{name} " in listed for verb in ("train", "evaluate", "predict"))
