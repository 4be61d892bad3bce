"""Who may import whom: nodes -> faceanon_core, never back; heavy libraries behind one module each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "faceanon_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
COMFY = {"comfy", "comfy_extras", "folder_paths", "node_helpers", "latent_preview", "execution", "server"}


def imported(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import of a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module or alias.name) for alias in node.names]
    return found


def packages(path: Path) -> set[str]:
    """Top-level packages a file imports absolutely."""
    return {module.split(".")[0] for level, module in imported(path) if level == 0}


def users_of(package: str, files: list[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in files if package in packages(path)}


def test_the_core_never_imports_nodes_or_comfyui() -> None:
    assert CORE
    for path in CORE:
        assert not packages(path) & (COMFY | {"nodes"}), path
        depth = len(path.relative_to(ROOT / "faceanon_core").parts)
        assert all(level <= depth for level, _ in imported(path)), f"{path} imports from outside the core"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("mediapipe", {"faceanon_core/faces.py"}),
        ("diffusers", {"faceanon_core/diffusion.py", "faceanon_core/benchmark.py"}),
        ("transformers", {"faceanon_core/pretrained.py", "faceanon_core/benchmark.py"}),
        ("onnxruntime", {"faceanon_core/pretrained.py"}),
        ("torchmetrics", {"faceanon_core/evaluation/measures.py"}),
        ("matplotlib", {"faceanon_core/evaluation/plots.py"}),
        ("jinja2", {"faceanon_core/evaluation/page.py"}),
        ("ray", {"faceanon_core/engines.py"}),
        ("dlib", {"faceanon_core/dlib_recogniser.py"}),
        ("skimage", {"faceanon_core/cli.py"}),
        ("folder_paths", {"nodes/folders.py"}),
        *((package, {"nodes/comfy_bridge.py"}) for package in sorted(COMFY - {"folder_paths"})),
    ],
)
def test_each_heavy_library_has_one_home(package: str, allowed: set[str]) -> None:
    for user in users_of(package, CORE + NODES):
        assert any(user.startswith(place) for place in allowed), f"{user} imports {package}"


def test_the_one_home_of_mediapipe_and_diffusers_does_import_them() -> None:
    assert users_of("mediapipe", CORE) == {"faceanon_core/faces.py"}
    assert "faceanon_core/diffusion.py" in users_of("diffusers", CORE)


def test_the_pack_imports_itself_relatively() -> None:
    for path in CORE + NODES:
        assert not packages(path) & {"faceanon_core", "nodes"}, f"{path} would break under ComfyUI's loader"


LOAD = """
import importlib.util, sys
for missing in {missing!r}:
    sys.modules[missing] = None  # importing it raises ImportError
root = {root!r}
spec = importlib.util.spec_from_file_location("made_up", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["made_up"] = pack
spec.loader.exec_module(pack)
assert pack.NODE_CLASS_MAPPINGS and set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
for node in pack.NODE_CLASS_MAPPINGS.values():
    assert node.INPUT_TYPES()["required"] is not None
"""


@pytest.mark.parametrize("folder", ["faceanon", "face-anon"])
def test_the_pack_loads_by_path_without_comfyui_or_mediapipe_whatever_its_folders_name(tmp_path: Path, folder: str) -> None:
    link = tmp_path / folder
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    heavy = [
        "mediapipe",
        "diffusers",
        "skimage",
        "onnxruntime",
        "transformers",
        "torchmetrics",
        "matplotlib",
        "jinja2",
        "ray",
    ]
    code = LOAD.format(root=str(link), missing=[*sorted(COMFY), *heavy])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_shown_without_loading_the_heavy_libraries() -> None:
    code = (
        "import sys; from faceanon_core import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "heavy = {'torch', 'mediapipe', 'diffusers', 'safetensors'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "anonymize" in done.stdout
