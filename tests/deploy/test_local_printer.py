"""What the session prints: user output with its function's name, one closing line per call, JSON without a terminal."""

import io
import json

from flashmesh.deploy.local.printer import LogPrinter, short_name


def printer(*, pretty: bool, quiet: bool = False) -> tuple[LogPrinter, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return LogPrinter(out=out, err=err, pretty=pretty, quiet=quiet), out, err


def test_user_output_is_shown_with_its_functions_name_on_the_stream_it_was_written_to() -> None:
    logs, out, err = printer(pretty=True)
    logs.output(function="gpu.process", endpoint="gpu", text="one\ntwo\n", stream="stdout")
    logs.output(function="", endpoint="gpu", text="loading", stream="stderr")
    assert out.getvalue() == "[process] one\n[process] two\n"
    assert err.getvalue() == "[gpu] loading\n"


def test_lost_lines_are_counted() -> None:
    logs, out, _ = printer(pretty=True)
    logs.output(function="f", endpoint="f", text="last", stream="stdout", dropped=7)
    assert out.getvalue().splitlines()[0] == "[f] … 7 lines were dropped: more than could be shown"


def test_the_closing_line_is_json_without_a_terminal() -> None:
    logs, _, err = printer(pretty=False)
    logs.closing({"execution": "e1", "function": "a.f", "run_ms": 1.5, "outcome": "SUCCESS"})
    line = json.loads(err.getvalue())
    assert line["event"] == "invocation"
    assert (line["execution"], line["function"], line["run_ms"], line["outcome"]) == ("e1", "a.f", 1.5, "SUCCESS")


def test_several_closing_lines_are_one_write() -> None:
    writes: list[str] = []
    logs, _, err = printer(pretty=False)
    err.write = writes.append  # type: ignore[method-assign, assignment]
    logs.closing({"execution": "e1"}, {"execution": "e2", "function": "größe.f"})
    (written,) = writes
    assert [json.loads(line)["execution"] for line in written.splitlines()] == ["e1", "e2"]
    assert "größe.f" in written


def test_the_closing_line_is_readable_on_a_terminal() -> None:
    logs, _, err = printer(pretty=True)
    logs.closing({"execution": "e1", "function": "a.f", "run_ms": 1.5, "queue_ms": 0.0, "outcome": "ERROR"})
    assert "ERROR f  run 1.5 ms  e1" in err.getvalue()


def test_a_scripts_session_prints_only_user_output_and_what_went_wrong() -> None:
    logs, out, err = printer(pretty=True, quiet=True)
    logs.closing({"outcome": "SUCCESS"})
    logs.notice("reloaded")
    logs.output(function="a.f", endpoint="a", text="hello", stream="stdout")
    logs.notice("no such package", level="error")
    assert out.getvalue() == "[f] hello\n"
    assert "no such package" in err.getvalue()
    assert "reloaded" not in err.getvalue()


def test_a_terminal_that_is_gone_does_not_end_the_session() -> None:
    logs, out, _ = printer(pretty=True)
    out.close()
    logs.output(function="f", endpoint="f", text="x", stream="stdout")


def test_short_names_keep_the_class_of_a_method() -> None:
    assert [short_name(name) for name in ("a.b.f", "f", "counter.Counter.inc")] == ["f", "f", "Counter.inc"]
