"""The figure of ``docs/wrappers/hedge.md``."""

from __future__ import annotations

from typing import Any

_BLUE, _RED, _LIGHT, _GREEN, _INK = "#1f6fb2", "#d1495b", "#6fb1e4", "#3b8a5a", "#33383f"
_TITLES = {"stream": "Streams: time to the first token", "whole": "Whole answers"}


def draw(path: str, found: dict[str, Any]) -> None:
    """Draw the share of calls above each time, for both kinds, and the p99 by the share of slow calls."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "path",
            "svg.hashsalt": "tail",  # the same data, the same file
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": "#c4c8ce",
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    figure, cells = plt.subplots(1, 3, figsize=(12.6, 3.9))
    for cell, kind in zip(cells, _TITLES, strict=False):
        _above(cell, found["virtual"][kind], _TITLES[kind])
    _shares(cells[2], found["shares"])
    for cell in cells:
        for side in ("top", "right"):
            cell.spines[side].set_visible(False)
        cell.grid(visible=True, color="#eceef1", lw=0.7)
        cell.set_axisbelow(True)
        cell.legend(frameon=False, fontsize=8.5)
    figure.tight_layout(w_pad=2.2)
    figure.savefig(path, facecolor="white", metadata={"Date": None} if path.endswith(".svg") else None)
    plt.close(figure)


def _title(cell: Any, text: str) -> None:
    cell.set_title(text, fontsize=10.5, fontweight="bold", loc="left", pad=8)


def _above(cell: Any, rows: dict[str, Any], title: str) -> None:
    for name, colour in (("without", _RED), ("with", _BLUE)):
        row = rows[name]
        cell.plot(
            [seconds for seconds, _ in row["above"]],
            [share for _, share in row["above"]],
            color=colour,
            lw=1.7,
            label=f"{name} Hedge (p99 {row['p99']:.1f} s)",
        )
    cell.axhline(0.01, color=_INK, lw=0.8, ls=(0, (4, 2)))
    cell.text(0.02, 0.0107, "p99", fontsize=8, va="bottom", transform=cell.get_yaxis_transform())
    cell.set_xscale("log")
    cell.set_yscale("log")
    cell.set_ylim(8e-4, 1)
    _plain(cell.xaxis, [0.2, 0.5, 1, 2, 5, 10])
    cell.set_yticks([1, 0.1, 0.01, 0.001], ["100%", "10%", "1%", "0.1%"])
    cell.set_xlabel("seconds")
    cell.set_ylabel("calls that take longer")
    _title(cell, title)


def _plain(axis: Any, ticks: list[float]) -> None:
    from matplotlib.ticker import NullFormatter

    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def _shares(cell: Any, rows: list[dict[str, Any]]) -> None:
    percent = [row["share"] * 100 for row in rows]
    names = [name for name in rows[0] if name != "share"]
    for name, colour in zip(names, (_RED, _BLUE, _LIGHT, _GREEN), strict=True):
        label = "without Hedge" if name == "without" else f"with: {name} of calls"
        cell.plot(percent, [row[name]["p99"] for row in rows], color=colour, lw=1.7, marker="o", ms=3.5, label=label)
    cell.set_ylim(0, 1.35 * max(row["without"]["p99"] for row in rows))
    cell.set_xlim(0, max(percent))
    cell.set_xlabel("slow calls at each deployment, %")
    cell.set_ylabel("p99 of the first token, seconds")
    _title(cell, "How much of a tail a budget can take")
