"""The figure of ``docs/prompt-caching.md``."""

from __future__ import annotations

from typing import Any

_INK = "#33383f"
_KINDS = {
    "output": ("answers", "#8a929c"),
    "fresh": ("prompt, plain", "#d1495b"),
    "written": ("prompt, written", "#e9a23b"),
    "read": ("prompt, read", "#1f6fb2"),
}


def draw(path: str, found: dict[str, Any]) -> None:
    """Draw what each way costs: a panel a model, a bar a way, its colours the kinds of tokens."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "path",
            "svg.hashsalt": "savings",  # the same data, the same file
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": "#c4c8ce",
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    models = {title: rows for title, rows in found["bills"].items() if "nothing" in rows}
    figure, cells = plt.subplots(1, len(models), figsize=(12.6, 3.5), sharey=True)
    for cell, (title, rows) in zip(cells, models.items(), strict=True):
        _panel(cell, title, rows)
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1), w_pad=2.0)
    figure.savefig(path, facecolor="white", metadata={"Date": None} if path.endswith(".svg") else None)
    plt.close(figure)


def _panel(cell: Any, title: str, rows: dict[str, Any]) -> None:
    whole = rows["nothing"]["dollars"]
    places = range(len(rows))
    left = [0.0] * len(rows)
    for kind, (label, colour) in _KINDS.items():
        widths = [row[kind] for row in rows.values()]
        cell.barh(places, widths, left=left, height=0.62, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, row in zip(places, rows.values(), strict=True):
        saved = 1 - row["dollars"] / whole
        share = f"−{saved:.1%}" if saved >= 0.001 else "−0%"
        told = f"${row['dollars']:,.0f}" + (f"  {share}" if place else "")
        cell.text(whole * 1.025, place, told, va="center", fontsize=8.5)  # right of the line, so that it cuts no figure
    cell.axvline(whole, color=_INK, lw=0.8, ls=(0, (4, 2)), zorder=0)
    cell.set_yticks(places, ["no cache" if name == "nothing" else name for name in rows])
    cell.invert_yaxis()
    cell.set_xlim(0, whole * 1.32)
    cell.set_xlabel("US dollars for an hour of traffic")
    cell.set_title(title, fontsize=10.5, fontweight="bold", loc="left", pad=8)
    for side in ("top", "right", "left"):
        cell.spines[side].set_visible(False)
    cell.tick_params(axis="y", length=0)
    cell.grid(visible=True, axis="x", color="#eceef1", lw=0.7)
    cell.set_axisbelow(True)
