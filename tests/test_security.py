"""Nothing that is read from a file can run code, and nothing is downloaded: by the calls that the sources make."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("mosaics_jax", "experiments", "launch", "benchmarks") for path in ROOT.glob(f"{name}/**/*.py")
)
RUN_CODE = {"eval", "exec", "compile", "os.system", "os.popen"}
NEEDED = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
IMPORTS = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "urllib", "http", "requests", "ftplib"}
FROM_PICKLE = {"UnpicklingError"}  # what torch raises


def faults(source):
    """What is wrong with a program, a line each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in RUN_CODE:
                yield f"line {node.lineno}: {name}"
            for keyword, value in [NEEDED[name]] if name in NEEDED else []:
                if keyword not in given or ast.unparse(given[keyword]) != str(value):
                    yield f"line {node.lineno}: {name} without {keyword}={value}"
            if "shell" in given:
                yield f"line {node.lineno}: {name} with a shell"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: imports {name}" for name in modules if name.split(".")[0] in IMPORTS)
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                yield f"line {node.lineno}: imports from pickle"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr not in FROM_PICKLE:
            yield f"line {node.lineno}: pickle.{node.attr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_run_code(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_what_it_looks_for():
    bad = ["eval(x)", "np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)", "pickle.loads(x)", "import yaml"]
    bad += ["from urllib import request", "subprocess.run(x, shell=True)", "from pickle import load"]
    assert all(list(faults(source)) for source in bad)
