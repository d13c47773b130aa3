"""An audit on one page."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl._checks import new_path
from scinfl.federation.rounds import write_atomically

_WIDTH, _LEFT, _ROW, _TOP = 960, 560, 20, 26
_COLOURS = {"leaks": "#D55E00", "unclear": "#E69F00", "holds": "#0072B2"}
_SHOWN = {"adversary", "uploads", "attack", "setting", "metric", "score", "baseline", "verdict"}
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ddd;"
    "vertical-align:top}.leaks{color:#D55E00;font-weight:600}.holds{color:#0072B2}.unclear{color:#a66f00}"
    "h2{margin-top:1.6em}dt{font-weight:600}dd{margin:0 0 .6em 0}svg{max-width:100%;height:auto}"
)


def audit_report(adata: AnnData, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an audit as one page: verdicts, a figure and the numbers of each family, settings, what was not tested.

    Parameters
    ----------
    adata
        Data that went through :func:`scinfl.tl.audit`.
    path
        File to write, ending in ``.html`` or ``.md``; it appears whole or not at all, and needs no other file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    KeyError
        If there is no audit.
    ValueError
        If the name ends in something else.
    FileExistsError
        If there is a file already.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.tl.audit_report(adata, "report.html")
    Traceback (most recent call last):
    ...
    KeyError: "Expected an audit in adata.uns['infl']['audit'], found none. Run `scinfl.tl.audit` first."
    """
    path = new_path(path, overwrite=overwrite)
    if path.suffix not in (".html", ".md"):
        msg = f"Expected `path` to end in '.html' or '.md', found '{path.name}'."
        raise ValueError(msg)
    audit = adata.uns.get(_names.UNS, {}).get("audit")
    if audit is None:
        msg = "Expected an audit in adata.uns['infl']['audit'], found none. Run `scinfl.tl.audit` first."
        raise KeyError(msg)
    text = _as_html(audit) if path.suffix == ".html" else _as_markdown(audit)
    write_atomically(Path(path), text.encode())


def _as_html(audit: Mapping[str, Any]) -> str:
    table = audit["table"]
    parts = ["<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Audit</title>"]
    parts.append(f"<style>{_STYLE}</style></head><body><h1>Audit of a federated model</h1>")
    parts.append(f"<p>{html.escape(_summary(audit))}</p><h2>What each adversary learns</h2><dl>")
    for adversary, words in audit["verdicts"].items():
        parts.append(f"<dt>{html.escape(adversary.capitalize())}</dt><dd>{html.escape(str(words))}</dd>")
    parts.append("</dl>")
    for family, own in table.groupby("family", sort=False):
        parts.append(f"<h2>{html.escape(str(family).capitalize())}</h2>")
        metric = own["metric"].iloc[0]
        parts.append(_figure(own[own["metric"] == metric]))
        parts.append(f"<details><summary>All numbers</summary>{_html_table(own)}</details>")
    parts.append("<h2>Settings</h2><table>")
    for name, value in _settings(audit).items():
        parts.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(_number(value))}</td></tr>")
    parts.append("</table><h2>Not tested</h2><ul>")
    parts += [f"<li>{html.escape(str(words))}</li>" for words in audit["not_tested"]]
    parts.append("</ul></body></html>")
    return "".join(parts)


def _as_markdown(audit: Mapping[str, Any]) -> str:
    lines = ["# Audit of a federated model", "", _plain(_summary(audit)), "", "## What each adversary learns", ""]
    lines += [
        f"- **{_plain(adversary.capitalize())}**: {_plain(words)}" for adversary, words in audit["verdicts"].items()
    ]
    for family, own in audit["table"].groupby("family", sort=False):
        picture = base64.b64encode(_figure(own[own["metric"] == own["metric"].iloc[0]]).encode()).decode()
        lines += [
            "",
            f"## {_plain(str(family).capitalize())}",
            "",
            f"![{_plain(family)}](data:image/svg+xml;base64,{picture})",
            "",
        ]
        columns = [name for name in own.columns if name in _SHOWN]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_plain(_cell(row, name)) for name in columns)} |" for _, row in own.iterrows()]
    lines += ["", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_plain(_number(value))} |" for name, value in _settings(audit).items()]
    lines += ["", "## Not tested", "", *(f"- {_plain(words)}" for words in audit["not_tested"]), ""]
    return "\n".join(lines)


def _plain(text: object) -> str:
    """Text of data as Markdown shows it, in one line: names of columns and sites format nothing and link nowhere."""
    return re.sub(r"([\\`*\[\]<>|!])", r"\\\1", " ".join(str(text).split()))


def _summary(audit: Mapping[str, Any]) -> str:
    about = audit["parameters"]
    return (
        f"Attacked: {about['model']}, {about['attacked']} (key scheme {about['key_scheme']}, shared: {about['share']})."
        f" {about['summary']} A finding leaks where its 95% interval lies above a baseline without access to the model."
    )


def _settings(audit: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in audit["parameters"].items() if name != "summary"}


def _html_table(own: pd.DataFrame) -> str:
    columns = [name for name in own.columns if name in _SHOWN]
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = []
    for _, row in own.iterrows():
        cells = "".join(f"<td>{html.escape(_cell(row, name))}</td>" for name in columns[:-1])
        verdict = html.escape(str(row["verdict"]))
        body.append(f"<tr>{cells}<td class='{verdict.replace(' ', '-')}'>{verdict}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _cell(row: pd.Series, name: str) -> str:
    if name == "score" and not np.isnan(row["low"]):
        return f"{row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    if name == "baseline":
        return f"{row['baseline']:.3f} ({row['baseline_name']})"
    return _number(row[name])


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


def _figure(own: pd.DataFrame) -> str:
    """Scores with intervals as dots, baselines as bars, as a picture that any browser draws."""
    own = own[own["score"].notna()]
    numbers = pd.concat([own["score"], own["baseline"], own["low"], own["high"]]).dropna()
    low, high = min([0.0, *numbers]), max([1.0, *numbers])
    height = _TOP + _ROW * len(own) + 34

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 20) * (value - low) / (high - low)

    size = f"width='{_WIDTH}' height='{height}' viewBox='0 0 {_WIDTH} {height}'"
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='sans-serif' font-size='11'>"]
    parts += [
        f"<line x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{_TOP - 8}' y2='{height - 34}' stroke='#ddd'/>"
        f"<text x='{x(tick):.1f}' y='{height - 20}' text-anchor='middle'>{tick:.2f}</text>"
        for tick in np.linspace(low, high, 5)
    ]
    parts += [_bar(row, _TOP + _ROW * number, x) for number, (_, row) in enumerate(own.iterrows())]
    label = html.escape(str(own["metric"].iloc[0]) if len(own) else "")
    parts.append(f"<text x='{(_LEFT + _WIDTH) / 2}' y='{height - 4}' text-anchor='middle'>{label}</text>")
    parts.append(f"<text x='{_LEFT}' y='12'>dot: attack with interval, bar: baseline</text></svg>")
    return "".join(parts)


def _bar(row: pd.Series, y: int, x: Any) -> str:
    colour = _COLOURS.get(row["verdict"], "#888")
    who = f"{row['adversary']}, {row['uploads']}" if row["uploads"] else row["adversary"]
    how = f"{row['attack']}, {row['setting']}" if row["setting"] else row["attack"]
    words = f"{who}: {how}"
    words = f"{words[:97]}…" if len(words) > 98 else words
    line = ""
    if not np.isnan(row["low"]):
        line = f"<line x1='{x(row['low']):.1f}' x2='{x(row['high']):.1f}' y1='{y}' y2='{y}' stroke='{colour}'/>"
    at = x(row["baseline"])
    return (
        f"<text x='{_LEFT - 8}' y='{y + 4}' text-anchor='end'>{html.escape(words)}</text>{line}"
        f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{y - 7}' y2='{y + 7}' stroke='#000' stroke-width='2'/>"
        f"<circle cx='{x(row['score']):.1f}' cy='{y}' r='4' fill='{colour}'/>"
    )
