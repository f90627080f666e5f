"""The fork gate against packages people really import: what it lets pass must work in twenty forks out of twenty.

`make test-fork` installs them all and rewrites the table in docs/fork.md; elsewhere what is not installed is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = [
    pytest.mark.forks,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks workers"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fork.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = (
    "| package | version | Python threads | native threads | forked | children that hung or failed | private MB |\n"
    "|---|---|---|---|---|---|---|\n"
)


class Case(NamedTuple):
    """One package: its distribution, its module, what a user's file does at import, and what a call does."""

    name: str
    module: str
    at_import: str
    in_child: str
    used: bool = False


def used(name: str, module: str, code: str, setup: str = "") -> list[Case]:
    """Twice: only imported before the fork, and used before the fork as well."""
    begin = f"import {module}\n{setup}"
    return [Case(name, module, begin, code), Case(name, module, f"{begin}\n{code}", code, used=True)]


CASES = [
    *used("numpy", "numpy", "a = numpy.ones((400, 400)); (a @ a).sum()"),
    *used("scipy", "scipy.linalg", "scipy.linalg.svd(numpy.random.rand(200, 200))", "import numpy"),
    *used("pandas", "pandas", "pandas.DataFrame({'a': range(1000), 'b': [1] * 1000}).groupby('b').sum()"),
    *used("polars", "polars", "polars.DataFrame({'a': range(100000)}).lazy().select(polars.col('a').sum()).collect()"),
    *used("pyarrow", "pyarrow.compute", "pyarrow.compute.sum(pyarrow.array(range(100000)))"),
    *used(
        "scikit-learn",
        "sklearn.ensemble",
        "sklearn.ensemble.RandomForestClassifier(20, n_jobs=2).fit([[0], [1]] * 50, [0, 1] * 50).predict([[1]])",
    ),
    *used("opencv-python-headless", "cv2", "cv2.GaussianBlur(numpy.zeros((600, 600, 3)), (9, 9), 0)", "import numpy"),
    *used(
        "torch",
        "torch",
        "(torch.ones(600, 600) @ torch.ones(600, 600)).sum().item(); torch.nn.Linear(64, 64)(torch.ones(256, 64))",
    ),
    *used("transformers", "transformers", "transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))"),
    *used(
        "tokenizers",
        "tokenizers",
        "t = tokenizers.Tokenizer(tokenizers.models.BPE()); t.encode_batch(['a b c'] * 100)",
    ),
    *used(
        "grpcio",
        "grpc",
        "c = grpc.insecure_channel('127.0.0.1:1'); grpc.channel_ready_future(c).cancel(); c.close()",
    ),
    *used(
        "boto3",
        "boto3",
        "boto3.client('s3', region_name='eu-west-1', aws_access_key_id='x', aws_secret_access_key='x')",
    ),
    *used("requests", "requests", "requests.Session().close()"),
    *used("pydantic", "pydantic", "pydantic.TypeAdapter(list[int]).validate_python(['1'])"),
    *used("sqlalchemy", "sqlalchemy", "sqlalchemy.create_engine('sqlite://').connect().close()"),
    *used("psycopg", "psycopg", "psycopg.conninfo.make_conninfo(host='x')", "import psycopg.conninfo"),
    *used("pillow", "PIL.Image", "PIL.Image.new('RGB', (400, 400)).resize((50, 50))"),
    *used("matplotlib", "matplotlib.figure", "matplotlib.figure.Figure().subplots().plot([1, 2])"),
    *used("lxml", "lxml.etree", "lxml.etree.fromstring('<a><b/></a>').xpath('//b')"),
    *used("orjson", "orjson", "orjson.dumps({'a': 1})"),
]


def installed(case: Case) -> bool:
    return importlib.util.find_spec(case.module.split(".")[0]) is not None


def probe(case: Case) -> dict[str, Any]:
    settings = {"name": case.name, "at_import": case.at_import, "in_child": case.in_child}
    script = Path(__file__).with_name("fork_probe.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=570,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr[-1000:]}


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest):
    """Collects a row per case; `-m forks` writes those of the packages that are here into the page."""
    found: dict[str, str] = {}
    yield found
    if request.config.getoption("-m") == "forks" and found:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        table, _, after = rest.partition(END)
        known = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
        known.pop("package", None)
        known.update(found)
        body = "\n".join(known[name] for name in sorted(known, key=str.lower))
        PAGE.write_text(f"{before}{BEGIN}\n{HEAD}{body}\n{END}{after}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}{' used' if case.used else ''}")
def test_what_the_gate_lets_pass_works_in_every_fork(case: Case, rows: dict[str, str]):
    """Twenty children of a process that imported (and used) the package all use it and end; none hangs."""
    if not installed(case):
        pytest.skip(f"{case.name} is not installed; `make test-fork` installs it")
    found = probe(case)
    label = f"{case.name}, used at import" if case.used else case.name
    forked = "yes" if found["forkable"] else f"no: {found['reason'].partition(';')[0]}"
    bad = found["hung"] + found["failed"]
    memory = "" if found["private_mb"] is None else found["private_mb"]
    rows[label] = (
        f"| {label} | {found['version']} | {found['python_threads']} | {found['native_threads']} | {forked} "
        f"| {bad} of {found['children']} | {memory} |"
    )
    if found["forkable"]:
        assert bad == 0, f"{bad} children hung or failed: {found['stderr']}"
