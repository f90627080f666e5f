"""The documentation page in a real browser that has no network beyond this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from session_fixtures import Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)

PROJECT = {
    "gpu/worker.py": """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="numbers")


@remote(cpu)
def square(x: int) -> int:
    return x * x
""",
    "routes.py": """
from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="api")


@remote(api, method="GET", path="/version")
async def version() -> dict:
    return {"version": 1}
""",
}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_docs_page_groups_routes_by_file_without_a_network(tmp_path: Path) -> None:
    """Swagger UI has rendered: its groups are in the document, which no script but its own puts there."""
    root = tmp_path / "project"
    for name, text in PROJECT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    served = Served(root)
    try:
        served.wait_until_ready()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        page = subprocess.run(
            [
                str(CHROMIUM),
                *OFFLINE,
                *sandbox,
                f"--user-data-dir={tmp_path / 'browser'}",
                "--virtual-time-budget=10000",
                "--dump-dom",
                f"{served.url}/docs",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        groups = re.findall(r'<h3[^>]*class="opblock-tag[^>]*data-tag="([^"]*)"', page)
        assert groups[:2] == ["gpu/worker.py [QB]", "routes.py [LB]"], page[:2000]
    finally:
        served.end()
