"""Deploying as a user does it: the real command, a real server, endpoints that answer."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed_fixtures import ASKS, CPU, Load, Machine, call, machine, request, until

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def cpu(version: str) -> str:
    return CPU.replace("{version}", version)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


def test_the_quickstart_is_deployed_by_one_command(here: Machine, tmp_path: Path) -> None:
    """No server runs: one is started, and how to stop it is said. Every curl line works as it is printed, and no file
    appears outside `.flash/`."""
    root = tmp_path / "quickstart"
    subprocess.run(["cp", "-r", str(QUICKSTART), str(root)], check=True)
    before = {path for path in root.rglob("*") if "__pycache__" not in path.parts}
    found = here.flash("deploy", "--allow-cpu", cwd=root)
    assert "flash server stop" in found.stderr
    assert "hello deployed" in found.stderr
    curls = [line for line in found.stdout.splitlines() if line.startswith("curl ")]
    assert len(curls) == 5
    for line in curls:
        answer = subprocess.run(
            ["bash", "-c", f"{line} -sS --max-time 30 -w '\\n%{{http_code}}'"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.rstrip().endswith("200"), f"{line}\n{answer.stdout}"
    made = {path for path in root.rglob("*") if "__pycache__" not in path.parts} - before
    assert {path.relative_to(root).parts[0] for path in made} == {".flash"}
    assert json.loads(here.flash("call", "hello", '{"name": "Ada"}', cwd=root).stdout) == {"message": "Hello, Ada!"}
    listed = here.flash("ls", cwd=root).stdout
    assert "quickstart/production" in listed and all(line in listed for line in curls)


def test_a_changed_function_is_replaced_under_load_without_a_failed_call(here: Machine) -> None:
    """Only its endpoint is touched; who calls meanwhile gets the old version or the new; afterwards only the new."""
    root = here.project(cpu=cpu("1"), asks=ASKS)
    first = {one["resource"]: one for one in here.deploy(root)["endpoints"]}
    assert call(first["cpu"], "version") == "1"
    assert request("POST", first["asks"]["url"] + "/run_sync", {"input": {}})[1]["output"] == "cpu says 1"
    with Load(here, "version") as load:
        load.wait_for("1")
        here.project(cpu=cpu("2"))
        second = here.deploy(root)
        load.wait_for("2")
    assert load.failures == []
    assert set(load.answers) == {"1", "2"}
    after = {one["resource"]: one for one in second["endpoints"]}
    assert after["cpu"]["url"] == first["cpu"]["url"]
    assert (after["cpu"]["build"], after["cpu"]["status"]) == (second["build"], "updated")
    assert {call(after["cpu"], "version") for _ in range(20)} == {"2"}
    assert request("POST", after["asks"]["url"] + "/run_sync", {"input": {}})[1]["output"] == "cpu says 2"


@pytest.mark.timeout(300)
def test_ten_deploys_under_load_lose_no_call(here: Machine) -> None:
    """32 clients: over the server, at the endpoint's own address, and from another endpoint."""
    root = here.project(cpu=cpu("0"), asks=ASKS)
    endpoints = {one["resource"]: one["url"] for one in here.deploy(root)["endpoints"]}
    with (
        Load(here, "version", 12) as over_server,
        Load(here, "version", 10, url=f"{endpoints['cpu']}/version/run_sync") as direct,
        Load(here, "ask", 10, url=f"{endpoints['asks']}/run_sync") as by_peer,
    ):
        for number in range(10):
            here.project(cpu=cpu(str(number + 1)))
            here.deploy(root)
            over_server.wait_for(str(number + 1), 5)
            direct.wait_for(str(number + 1), 5)
            by_peer.wait_for(f"cpu says {number + 1}", 5)
    assert [*over_server.failures, *direct.failures, *by_peer.failures] == []


def test_a_third_deploy_of_the_same_files_changes_nothing(here: Machine) -> None:
    """The same build; no worker is replaced."""
    root = here.project(cpu=cpu("1"))
    first = here.deploy(root)
    pid = call(first["endpoints"][0], "pid")
    again = here.deploy(root)
    assert again["build"] == first["build"]
    assert [one["name"] for one in again["plan"]["unchanged"]] == ["cpu"]
    assert call(again["endpoints"][0], "pid") == pid
    assert "nothing to do: 1 unchanged" in here.flash("plan", cwd=root).stdout


def test_a_plan_shows_what_differs_before_it_happens(here: Machine) -> None:
    """New, changed with the reason, removed; and it changes nothing, not even where no server runs."""
    root = here.project(cpu=cpu("1"), old=ASKS.replace("asks", "old"))
    planned = here.flash("plan", cwd=root)
    assert "cpu  new" in planned.stdout and here.facts is None
    here.deploy(root)
    (root / "old.py").unlink()
    here.project(cpu=cpu("2"), asks=ASKS)
    plan = json.loads(here.flash("plan", "--json", cwd=root).stdout)["plan"]
    assert {kind: [one["name"] for one in plan[kind]] for kind in ("new", "changed", "removed")} == {
        "new": ["asks"],
        "changed": ["cpu"],
        "removed": ["old"],
    }
    assert plan["changed"][0]["lines"] == ["code: cpu.py"]
    assert call(here.endpoint("cpu"), "version") == "1"


def test_a_failing_import_leaves_the_version_before_serving(here: Machine) -> None:
    """Exit code 1 and the import's error; the others deploy; `flash status` says it, and the next deploy mends it."""
    root = here.project(cpu=cpu("1"), other=cpu("a").replace('name="cpu"', 'name="other"'))
    here.deploy(root)
    broken_source = cpu("2") + "\nraise RuntimeError('no such thing')\n"
    here.project(cpu=broken_source, other=cpu("b").replace('name="cpu"', 'name="other"'))
    found = here.flash("deploy", cwd=root, code=1)
    assert "no such thing" in found.stderr
    broken = here.endpoint("cpu")
    assert broken["status"] == "failed" and "no such thing" in broken["error"]
    assert "no such thing" in here.flash("status").stdout
    assert call(broken, "version") == "1"
    assert call(here.endpoint("other"), "version") == "b"
    here.project(cpu=cpu("3"))
    here.deploy(root)
    mended = here.endpoint("cpu")
    assert (mended["status"], mended["error"], call(mended, "version")) == ("updated", None, "3")


def test_a_rollback_brings_the_version_before_back(here: Machine) -> None:
    """And what the last deploy removed; its address stays."""
    root = here.project(cpu=cpu("1"), asks=ASKS)
    first = here.deploy(root)
    (root / "asks.py").unlink()
    here.project(cpu=cpu("2"))
    here.deploy(root)
    back = json.loads(here.flash("rollback", "--json", cwd=root).stdout)
    assert (back["build"], back["status"], back["kind"]) == (first["build"], "succeeded", "rollback")
    assert {one["resource"] for one in back["endpoints"]} == {"cpu", "asks"}
    assert call(here.endpoint("cpu"), "version") == "1"
    refused = here.flash("rollback", cwd=root, code=1)
    assert "flash deploy" in refused.stderr


def test_two_environments_and_two_apps_stand_side_by_side(here: Machine) -> None:
    """Each with endpoints and names of its own; `undeploy --all` takes down one environment only."""
    root = here.project(cpu=cpu("production"))
    here.deploy(root)
    here.project(cpu=cpu("staging"))
    here.deploy(root, "--env", "staging")
    other = here.project("blog", cpu=cpu("blog"))
    here.deploy(other)
    found = {(place["app"], place["environment"]): place["endpoints"][0] for place in here.status()}
    assert {place: call(endpoint, "version") for place, endpoint in found.items()} == {
        ("shop", "production"): "production",
        ("shop", "staging"): "staging",
        ("blog", "production"): "blog",
    }
    assert len({endpoint["endpoint"] for endpoint in found.values()}) == 3
    ask = {"input": {}}
    path = "/v1/functions/cpu.version:invoke"
    status, body = here.api("POST", path, ask)
    assert status == 409 and found["blog", "production"]["endpoint"] in body["message"]
    assert here.api("POST", f"{path}?app=shop", ask)[1]["output"] == "production"
    staging = {"X-Flash-App": "shop", "X-Flash-Environment": "staging"}
    assert here.api("POST", path, ask, **staging)[1]["output"] == "staging"
    id = found["shop", "staging"]["endpoint"]
    assert here.api("POST", f"/v2/{id}/version/runsync", ask)[1]["output"] == "staging"
    for environment in ("staging", "production"):
        key = {"Idempotency-Key": "the same", "X-Flash-App": "shop", "X-Flash-Environment": environment}
        assert here.api("POST", path, ask, **key)[1]["output"] == environment
    here.flash("undeploy", "--all", "-y", "--env", "staging", cwd=root)
    left = {(place["app"], place["environment"]) for place in here.status() if place["endpoints"]}
    assert left == {("shop", "production"), ("blog", "production")}
    assert call(found["shop", "production"], "version") == "production"
    with pytest.raises(OSError):
        call(found["shop", "staging"], "version")


def test_of_two_deploys_at_once_one_is_told_who_runs_and_one_that_waits_comes_after(here: Machine) -> None:
    """Never two half-versions."""
    root = here.project(cpu=cpu("1"))
    here.deploy(root)
    gate = here.folder / "gate"
    waits = f"\nimport pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n"
    here.project(cpu=cpu("2") + waits)
    first = here.begin("deploy", "--json", cwd=root)
    until(lambda: any(place["running"] for place in here.status()), "the first deploy's begin")
    status, manifest = here.api("GET", "/manifest?app=shop")  # what serves, while it is being changed
    assert (status, manifest["resources"]["cpu"]["status"]) == (200, "deployed")
    other = here.project("elsewhere", cpu=cpu("3"))
    refused = here.flash("deploy", "--app", "shop", cwd=other, code=1)
    assert "runs already" in refused.stderr and "--wait" in refused.stderr
    waiting = here.begin("deploy", "--app", "shop", "--wait", "--json", cwd=other)
    gate.touch()
    assert json.loads(first.communicate(timeout=60)[0])["status"] == "succeeded"
    assert json.loads(waiting.communicate(timeout=60)[0])["status"] == "succeeded"
    assert call(here.endpoint("cpu"), "version") == "3"


def test_values_of_variables_reach_the_functions_and_are_shown_nowhere(here: Machine) -> None:
    """Neither in what commands print, nor in the manifest, nor in any file but the server's own database."""
    secret = "v3ry-s3cr3t-value"
    root = here.project(cpu=cpu("1"))
    (here.folder / "prod.env").write_text(f"API_KEY={secret}\n")
    printed = here.flash("deploy", "--env-file", "../prod.env", "--json", cwd=root)
    assert call(here.endpoint("cpu"), "variable", name="API_KEY") == secret
    shown = [printed.stdout, printed.stderr, here.flash("plan", "--env-file", "../prod.env", cwd=root).stdout]
    shown += [here.flash("status", "--json").stdout, json.dumps(here.api("GET", "/manifest?app=shop")[1])]
    shown += [path.read_text(errors="replace") for path in (root / ".flash").iterdir() if path.is_file()]
    shown += [path.read_text() for path in here.home.glob("hosts/*/server/manifests/*.json")]
    assert len(shown) > 6
    assert not any(secret in text for text in shown)
    (here.folder / "prod.env").write_text("API_KEY=another\n")
    changed = here.deploy(root, "--env-file", "../prod.env")
    assert [one["lines"] for one in changed["plan"]["changed"]] == [["env: values"]]
    assert call(here.endpoint("cpu"), "variable", name="API_KEY") == "another"


def test_what_changes_what_serves_needs_the_admin_token(here: Machine) -> None:
    """On this machine too: a web page or another program of it deploys nothing."""
    here.deploy(here.project(cpu=cpu("1")))
    for method, path in (
        ("POST", "/v1/deployments"),
        ("POST", "/v1/plan"),
        ("POST", "/v1/undeploy"),
        ("GET", "/v1/deployments"),
        ("PUT", "/v1/builds/abcdefabcdef/artifact?app=shop"),
    ):
        status, body = here.api(method, path, {}, Authorization="")
        assert status == 401, (method, path, body)
    status, body = here.api("PUT", "/v1/builds/abcdefabcdef/artifact?app=shop", b"not an archive")
    assert (status == 422 and "flash build" in body["message"]) or "Send it again" in body["message"]


def test_what_would_remove_another_directorys_resources_has_to_be_confirmed(here: Machine) -> None:
    """Without a terminal the option that says so is named."""
    here.deploy(here.project(cpu=cpu("1")))
    other = here.project("other", asks=ASKS, cpu=cpu("1"))
    (other / "cpu.py").rename(other / "helper.py")
    (other / "asks.py").write_text(ASKS.replace("from cpu import version", "").replace(" + await version()", ""))
    refused = here.flash("deploy", "--app", "shop", cwd=other, code=2)
    assert "--replace" in refused.stderr and "cpu" in refused.stderr
    here.deploy(other, "--app", "shop", "--replace")
    assert {one["resource"] for one in here.status()[0]["endpoints"]} == {"asks", "helper"}
