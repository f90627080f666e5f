"""What the READMEs say about deploying is what happens: their lines are run, their answers are looked at."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed_fixtures import PATIENCE_S, Machine, machine
from session_fixtures import serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "examples" / "library"
Said = tuple[str, str, str]
"""A line that was run, its stdout and its stderr."""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


def block(text: str, *, having: str) -> list[str]:
    """The lines of the one shell block that has such a line, without their comments."""
    (found,) = [
        block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if re.search(having, block, re.MULTILINE)
    ]
    return [line.split("  #")[0].strip() for line in found.splitlines() if line.strip()]


def ran(here: Machine, cwd: Path, line: str, *, ports: dict[str, int] | None = None) -> Said:
    """Run one line of a README in a shell; it must succeed."""
    command = line
    for shown, port in (ports or {}).items():
        command = command.replace(f"localhost:{shown}", f"localhost:{port}")
    folder = str(Path(sys.executable).parent)
    env = {**here.env, "PATH": f"{folder}:{here.env['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return line, done.stdout, done.stderr


def server_port(here: Machine) -> dict[str, int]:
    assert here.facts is not None
    return {"7470": int(here.facts["url"].rpartition(":")[2])}


def test_the_lines_about_deploying_do_what_the_readme_says(here: Machine) -> None:
    (source,) = re.findall(r"```python\n# hello\.py\n(.*?)```", README, re.DOTALL)
    root = here.project(hello=source)
    lines = block(README, having=r"^flash deploy ")
    assert [line.split()[1] for line in lines] == [
        *("plan", "deploy", "call", "deploy", "rollback", "deploy", "status", "undeploy", "server")
    ]
    said: list[Said] = []
    for line in lines:
        if line == "flash deploy" and said[-1][0].startswith("flash call"):
            here.project(hello=source.replace("Hello, ", "Goodbye, "))
        if line == "flash rollback":
            assert json.loads(ran(here, root, lines[2])[1]) == {"message": "Goodbye, Ada!"}
        said.append(ran(here, root, line))
    plan, deploy, call, again, back, staging, status, down, stop = said
    assert "hello" in plan[1] and "new" in plan[1]
    (curl,) = [line for line in deploy[1].splitlines() if line.startswith("curl ")]
    assert "flash server stop" in deploy[2] and re.search(r"http://127\.0\.0\.1:\d+", curl)
    assert json.loads(call[1]) == {"message": "Hello, Ada!"}
    assert "hello.py" in again[2]
    assert "Rolled back" in back[2]
    assert "/staging" in staging[2]
    assert "/production" in status[1] and "/staging" in status[1]
    assert "Undeployed" in down[2] and "Stopped" in stop[2]


def test_what_is_still_deployed_comes_back_at_the_next_start(here: Machine) -> None:
    (source,) = re.findall(r"```python\n# hello\.py\n(.*?)```", README, re.DOTALL)
    root = here.project(hello=source)
    before = here.deploy(root)["endpoints"][0]["url"]
    here.flash("server", "stop", cwd=root)
    here.serve()
    assert here.endpoint("hello")["url"] == before
    assert json.loads(ran(here, root, 'flash call hello \'{"name": "Ada"}\'')[1]) == {"message": "Hello, Ada!"}


def test_the_example_library_is_deployed_by_the_lines_of_its_readme(here: Machine, tmp_path: Path) -> None:
    text = (EXAMPLE / "README.md").read_text()
    root = tmp_path / "library"
    shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns(".flash", "__pycache__"))
    deploy, call, curl, stream, script, status = block(text, having=r"^flash deploy --allow-cpu")
    assert ran(here, root, deploy)[1].count("curl ") >= 11
    ports = server_port(here)
    (first, *_) = json.loads(ran(here, root, call)[1])
    assert first["title"] == "apples"
    assert json.loads(ran(here, root, curl, ports=ports)[1])["found"][0] == first
    entries = [json.loads(line) for line in ran(here, root, stream, ports=ports)[1].splitlines()]
    assert len(entries) == 12 and {entry["title"] for entry in entries} == {"apples", "bicycles", "bread", "tides"}
    _, answer, told = ran(here, root, script)
    assert answer.startswith("bicycles (") and here.facts is not None and here.facts["url"] in told
    assert {one["status"] for place in here.status() for one in place["endpoints"]} == {"deployed"}
    assert "embeddings" in ran(here, root, status)[1]
    plan, down, stop = block(text, having=r"^flash undeploy")
    assert "unchanged" in ran(here, root, plan)[1]
    ran(here, root, down)
    assert [one["endpoints"] for one in here.status()] == [[]] or here.status() == []
    ran(here, root, stop)


def test_every_curl_line_that_a_deploy_of_the_example_prints_works_when_pasted(here: Machine, tmp_path: Path) -> None:
    root = tmp_path / "library"
    shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns(".flash", "__pycache__"))
    printed = here.flash("deploy", "--allow-cpu", cwd=root).stdout
    lines = [line for line in printed.splitlines() if line.startswith("curl ")]
    assert len(lines) == 11
    status = "curl -sS -o /dev/null -w '%{http_code}' "
    answers = {line: ran(here, root, line.replace("curl ", status, 1))[1] for line in lines}
    no_title = {line: code for line, code in answers.items() if code != "200"}  # `text` is no document's title
    assert sorted(no_title.values()) == ["404", "500"], answers
    assert all("/documents/text" in line or '"title": "text"' in line for line in no_title), answers


def test_the_example_library_answers_the_lines_of_its_readme_under_flash_run(here: Machine, tmp_path: Path) -> None:
    text = (EXAMPLE / "README.md").read_text()
    root = tmp_path / "library"
    shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns(".flash", "__pycache__"))
    search, stream, likeness, script, own = block(text, having=r"^python -m pytest")
    with serving(root) as served:
        ports = {"8888": int(served.url.rpartition(":")[2])}
        assert json.loads(ran(here, root, search, ports=ports)[1])["found"][0]["title"] == "apples"
        assert len(ran(here, root, stream, ports=ports)[1].splitlines()) == 12
        assert 0 < json.loads(ran(here, root, likeness, ports=ports)[1])["likeness"] < 1
    assert ran(here, root, script)[1].startswith("bicycles (")
    assert " passed" in ran(here, root, f"{own} -q -p no:cacheprovider -c /dev/null --rootdir .")[1]


def test_the_lines_about_environments_of_the_page_on_deploying_work_in_their_order(here: Machine) -> None:
    (source,) = re.findall(r"```python\n# hello\.py\n(.*?)```", README, re.DOTALL)
    root = here.project(hello=source)
    ran(here, root, "flash deploy")
    lines = block((ROOT / "docs" / "deploy.md").read_text(), having=r"^flash env get staging")
    deploy, listed, got, down, gone = (ran(here, root, line) for line in lines)
    assert "/staging" in deploy[2]
    assert "production" in listed[1] and "staging" in listed[1]
    assert "hello" in got[1] and "succeeded" in got[1]
    assert "Undeployed" in down[2] and "Deleted" in gone[2]
    assert [place["environment"] for place in here.status()] == ["production"]
