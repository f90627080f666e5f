"""Project folders for tests of what imports user code, and interpreters to import them in."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmesh.worker.spec import ModuleSpec, WorkerSpec


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files (name → source, indented as one likes) below `root`."""
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return root


def spec_of(root: Path, modules: Mapping[str, str], functions: list[str], **changes: Any) -> WorkerSpec:
    """A spec that loads `modules` (dotted name → file) of the project at `root`."""
    values: dict[str, Any] = {
        "endpoint": "own",
        "build": "0123456789ab",
        "generation": 1,
        "project_root": str(root),
        "sys_path": [str(root)],
        "modules": [ModuleSpec(module=name, file=str(root / file)) for name, file in modules.items()],
        "functions": functions,
        "link": str(root / "link.sock"),
        "manifest": str(root / "manifest.json"),
        "socket_path": str(root / "own.sock"),
    }
    return WorkerSpec(**(values | changes))


def load_in_child(spec: WorkerSpec, then: str = "") -> Any:
    """Load `spec` in a fresh interpreter, run `then`, and give back the value it stored in `out` (JSON).

    `loaded`, `problem` (a dict, or None) and `spec` are names in it; without `then`, `out` is the list of callable ids.
    """
    program = textwrap.dedent(
        """
        import json, sys, asyncio
        from flashmesh.worker.spec import WorkerSpec
        from flashmesh.worker.loader import ImportProblem, load
        spec = WorkerSpec.from_dict(json.loads(sys.argv[1]))
        loaded = problem = out = None
        try:
            loaded = load(spec)
            out = list(loaded.callables)
        except ImportProblem as error:
            problem = {"file": error.file, "line": error.line, "reason": error.reason, "traceback": error.traceback}
            out = problem
        """
    ) + textwrap.dedent(then)
    program += "\nprint('\\n' + json.dumps(out))\n"
    argv = [sys.executable, "-P", "-W", "error", "-c", program, json.dumps(spec.to_dict())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
