"""The figure of ``docs/overload.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.overload.plan import Plan

_TITLES = {
    "refuses": "The provider refuses what it can't serve soon",
    "queues": "The provider lets callers queue",
}
_NAMES = {
    "none": "no protection",
    "naive": "3 retries",
    "litellm": "LiteLLM Router",
    "standard": "llmprod: standard",
    "llmprod": "llmprod: bulkhead",
}
_BLUE, _RED = "#1f6fb2", "#d1495b"
_SMOOTH = 3
_INK = "#33383f"


def draw(path: str, plans: dict[str, Plan], found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Draw goodput and attempts over time: a row a contestant, a column a scenario."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "path",
            "svg.hashsalt": "overload",  # the same data, the same file
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": "#c4c8ce",
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    names = [name for name in _NAMES if any(name in rows for rows in found.values())]
    width, height = 5.2 * len(found), 1.5 * len(names) + 1.2
    figure, axes = plt.subplots(len(names), len(found), figsize=(width, height), sharex=True, squeeze=False)
    for column, (scenario, rows) in enumerate(found.items()):
        for place, name in enumerate(names):
            cell = axes[place][column]
            if name in rows:
                _cell(cell, plans[scenario], name, rows[name])
            if column == 0:
                cell.set_ylabel("a second")
            if place == len(names) - 1:
                cell.set_xlabel("seconds")
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1 - 0.32 / height), h_pad=0.8, w_pad=1.8)
    for column, scenario in enumerate(found):
        box = axes[0][column].get_position()
        figure.text(box.x0, 1 - 0.26 / height, _TITLES[scenario], fontsize=11.5, fontweight="bold")
    figure.savefig(path, facecolor="white", metadata={"Date": None} if path.endswith(".svg") else None)
    plt.close(figure)


def _cell(cell: Any, plan: Plan, name: str, row: dict[str, Any]) -> None:
    top = 2.5 * plan.capacity
    seconds = [second + 0.5 for second in range(int(plan.length))]
    series = {key: _smooth(values)[: len(seconds)] for key, values in row["series"].items()}
    cell.axvspan(plan.before, plan.restored, color="#f3f0ea", zorder=0, lw=0)
    steps = [0, plan.before, plan.restored, plan.length]
    cell.step(
        steps,
        [plan.capacity, plan.reduced, plan.capacity, plan.capacity],
        where="post",
        color=_INK,
        lw=1,
        ls=(0, (4, 2)),
        label="capacity",
    )
    cell.plot(seconds, series["offered"], color="#b4b9c0", lw=0.9, label="calls begun")
    cell.plot(seconds, series["attempts"], color=_RED, lw=1.1, label="attempts that reach the provider")

    cell.fill_between(seconds, series["goodput"], color=_BLUE, alpha=0.28, lw=0)
    cell.plot(seconds, series["goodput"], color=_BLUE, lw=1.5, label="goodput: answers in time")
    recovered = "does not recover" if row["recovery"] is None else f"back in {row['recovery']:.0f} s"
    told = f"goodput {row['goodput_drop']:.0%} · {row['attempts_drop']:.2f} attempts a call · {recovered}"
    cell.set_title(_NAMES[name], fontsize=9, fontweight="bold", loc="left", pad=4)
    cell.set_title(told, fontsize=8.5, loc="right", pad=4)
    cell.set_xlim(0, plan.length)
    cell.set_ylim(0, top)
    for side in ("top", "right"):
        cell.spines[side].set_visible(False)
    if max(series["attempts"]) > top:
        cell.annotate(
            f"up to {max(series['attempts']):.0f}",
            (plan.before + plan.drop / 2, top * 0.97),
            ha="center",
            va="top",
            fontsize=8,
            color=_RED,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of three seconds: a Poisson process is ragged by itself."""
    half = _SMOOTH // 2
    return [
        sum(around) / len(around) for at in range(len(values)) if (around := values[max(0, at - half) : at + half + 1])
    ]
