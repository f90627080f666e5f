"""`python -m benchmarks.report`: refresh the tables and pictures of docs/performance.md from what was measured.

Reads `bench.json` (`make bench`), `peers.json` (`make bench-peers`) and `account.json` (`python -m benchmarks.account`)
in `.bench/`; what is missing is left as it is.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pictures import BAD, GOOD, PLAIN, bars, stacked

_GOAL = re.compile(r"([≤≥]) (\+?)([\d.]+) ?(×|[a-zµ/]+)?(?:,? ?\(([\d.]+)\))?")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A measured figure beside its goal."""

    times: float
    """How many times better than it must be; below 1 it is not good enough."""
    at_goal: bool | None
    """Whether the further goal, in parentheses, is reached; None where there is none."""


def verdict(row: Mapping[str, Any]) -> Verdict | None:
    """What a row's goal (`≥ 0.8× (1.2)`, `≤ 600 ms (300)`, `≤ +200 ns`) says of it; None without a goal."""
    found = _GOAL.match(row["goal"])
    if found is None:
        return None
    sign, plus, limit, unit, further = found.groups()
    value = row["ratio"] if unit == "×" else row["value"] - row["floor"] if plus else row["value"]
    if value is None:
        return None
    value = max(value, 1e-9)

    def times(limit: float) -> float:
        if not limit:
            return float(value <= 1e-9)
        return value / limit if sign == "≥" else limit / value

    return Verdict(times(float(limit)), None if further is None else times(float(further)) >= 1)


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bench_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| path | measured | floor in the same run | ratio | must (goal) | |", "|---|---|---|---|---|---|"]
    for row in rows:
        floor = f"{number(row['floor'])} {row['unit']}, {row['floor_name']}" if row["floor"] else ""
        ratio = f"{row['ratio']:.2f}×" if row["ratio"] else ""
        found = verdict(row)
        met = "" if found is None else "**missed**" if found.times < 1 else "goal" if found.at_goal else "met"
        if row["note"]:
            met = f"{met}; {row['note']}" if met else row["note"]
        lines.append(
            f"| {row['name']} | {number(row['value'])} {row['unit']} | {floor} | {ratio} | {row['goal']} | {met} |"
        )
    return lines


def bench_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much better than it must be each figure with a goal is; what is four times better or more, as four."""
    found = [(row["name"], verdict(row)) for row in rows]
    shown = [
        (name, min(one.times, 4.0), f"{one.times:.2f}×", GOOD if one.times >= 1 else BAD)
        for name, one in found
        if one is not None
    ]
    return bars("How much better than it must be (dashed: as it must be)", shown, mark=1.0)


def peers_table(peers: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| | start to first answer | one at a time, p50 | over uvicorn | 32 in flight | over uvicorn | we are |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = next((peer for peer in peers if peer["ours"]), None)
    for peer in peers:
        if "why_not" in peer:
            lines.append(f"| {peer['name']} | | | | | | not measured: {peer['why_not']} |")
            continue
        rate = peer["rate"] / peer["base_rate"]
        times = f"{ours['rate'] / ours['base_rate'] / rate:.1f} times faster" if ours and not peer["ours"] else ""
        lines.append(
            f"| {peer['name']} | {peer['start_s']:.2f} s | {peer['p50_s'] * 1e6:,.0f} µs | "
            f"{peer['p50_s'] / peer['base_p50_s']:.1f}× | {peer['rate']:,.0f}/s | {rate:.3f}× | {times} |"
        )
    return lines


def peers_picture(peers: Sequence[Mapping[str, Any]]) -> str:
    measured = [(peer, peer["rate"] / peer["base_rate"]) for peer in peers if "why_not" not in peer]
    rows = [
        (peer["name"], rate, f"{rate:.3f}× ({peer['rate']:,.0f}/s)", GOOD if peer["ours"] else PLAIN)
        for peer, rate in measured
    ]
    return bars("Calls per second, 32 in flight, over bare uvicorn's in the same turn", rows, mark=1.0)


def account_table(accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = [f"{one['connections']} under way" for one in accounts]
    lines = [f"| stage, µs of CPU per call | {' | '.join(heads)} |", "|---|" + "---|" * len(accounts)]
    for stage in accounts[0]["stages_us"]:
        taken = " | ".join(f"{one['stages_us'][stage]:.1f}" for one in accounts)
        lines += [f"| {stage} | {taken} |"]
    totals = [f"**{sum(one['stages_us'].values()):.1f}**, {one['kernel_us']:.1f} in the kernel" for one in accounts]
    lines.append("| **all of it** | " + " | ".join(totals) + " |")
    return lines


def account_picture(accounts: Sequence[Mapping[str, Any]]) -> str:
    rows = [(f"{one['connections']} under way", one["stages_us"]) for one in accounts]
    return stacked("Where each microsecond of a warm synchronous call goes (CPU, server and worker)", rows, unit="µs")


def put(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with the table between the marks of that name replaced. Raises ValueError without such marks."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no {begin} … {end}")
    return "\n".join([head + begin, "", *lines, "", end]) + tail


def refresh(measured: Path, docs: Path) -> list[Path]:
    """Rewrite the page and its pictures; the files written."""
    page, figures = docs / "performance.md", docs / "figures"
    figures.mkdir(exist_ok=True)
    text = page.read_text()
    written = [page]

    def picture(name: str, svg: str) -> None:
        (figures / name).write_text(svg)
        written.append(figures / name)

    bench = _read(measured / "bench.json")
    if bench is not None:
        machine = f"Measured on {bench['machine']}."
        text = put(
            text,
            "bench",
            [machine, "", *bench_table(bench["rows"]), "", "![Each figure over what it must be](figures/bench.svg)"],
        )
        picture("bench.svg", bench_picture(bench["rows"]))
    peers = _read(measured / "peers.json")
    if peers is not None:
        machine = f"Measured on {peers['machine']}."
        shown = "![Calls per second over bare uvicorn's](figures/peers.svg)"
        text = put(text, "peers", [machine, "", *peers_table(peers["peers"]), "", shown])
        picture("peers.svg", peers_picture(peers["peers"]))
    accounts = _read(measured / "account.json")
    if accounts is not None:
        text = put(
            text, "account", [*account_table(accounts), "", "![CPU time of a call by stage](figures/account.svg)"]
        )
        picture("account.svg", account_picture(accounts))
    page.write_text(text)
    return written


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    """Says what was written."""
    root = Path(__file__).parents[1]
    for path in refresh(root / ".bench", root / "docs"):
        print(path.relative_to(root))


if __name__ == "__main__":
    main()
