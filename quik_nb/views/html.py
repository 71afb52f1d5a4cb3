"""The pieces of HTML that a view is made of, live and saved, and their style: bar, table, curve and footer.

Heights are reserved beforehand so that nothing jumps, and a saved view has the places of the live one. The log scale is
switched by a checkbox and CSS alone, since a widget's button does not reach the kernel while its cell runs.

What must be right without the style, as on GitHub, which drops it, says so with attributes of its own (`align`).
"""

from html import escape

from quik_nb.history import History
from quik_nb.views import table
from quik_nb.views.chart_layout import HEIGHT, Outlook, left_out
from quik_nb.views.format import one_line
from quik_nb.views.observations import observation
from quik_nb.views.shapes import COLOURS, WIDTH
from quik_nb.views.status import RunStatus
from quik_nb.views.svg import svg

ROWS = 11
"""Lines of the table below its header, so that it stands as high as the curve beside it."""

NARROWEST = 360
"""Pixels to which the curve is narrowed rather than put below the table."""
LINE_HEIGHT = 1.77
"""of a line of the table, in its own letters"""

STYLE = f"""<style scoped>
.quik-view {{ display: flex; flex-flow: row wrap; align-items: flex-start; gap: 4px 20px; padding: 2px 0 2px 6px;
  font-size: 13px; line-height: 1.45; color: var(--jp-content-font-color1, inherit); max-width: 100%; }}
.jp-RenderedHTMLCommon > .quik-view {{ margin: 0 -20px 0 0; max-width: none; }}
.quik-view .widget-html {{ margin: 0; height: auto; width: auto; max-width: 100%; overflow: visible;
  font-size: inherit; }}
.quik-view .widget-html-content {{ line-height: 1.45; width: 100%; overflow-x: auto; overflow-y: hidden; }}
.quik-view .quik-wide {{ flex: 1 1 100%; max-width: 100%; margin: 0; }}
.quik-view .quik-bar {{ max-width: 860px; min-height: 57px; font-variant-numeric: tabular-nums; margin: 0; }}
.quik-view .quik-bar small {{ font-size: inherit; opacity: .8; }}
.quik-view .quik-progress {{ height: 6px; border-radius: 3px; overflow: hidden; margin: 2px 0;
  background: var(--jp-layout-color3, rgba(128, 128, 128, .3)); }}
.quik-view .quik-progress.quik-epoch {{ height: 2px; margin-bottom: 5px; }}
.quik-view .quik-progress > div {{ height: 100%; border-radius: 3px; background: {COLOURS["train"]}; }}
.quik-view .quik-progress > .quik-valid {{ background: {COLOURS["valid"]}; }}
.quik-view .quik-status {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis; min-height: 1.45em; }}
.quik-view .quik-status + .quik-status {{ opacity: .8; }}
.quik-view .quik-table {{ overflow-x: auto; max-width: 100%; }}
.quik-view table {{ border-collapse: collapse; border: 0; margin: 0; font-size: 13px; table-layout: auto;
  font-variant-numeric: tabular-nums; }}
.quik-view tr, .quik-view tbody tr:nth-child(n), .quik-view tbody tr:hover {{ background: none; border: 0; }}
.quik-view th, .quik-view td {{ padding: 2px 0 2px 16px; border: 0; white-space: nowrap; text-align: right;
  background: none; min-width: 7ch; line-height: 1.45; max-width: none; }}
.quik-view th:first-child, .quik-view td:first-child {{ padding-left: 0; min-width: 5ch; }}
.quik-view td[colspan] {{ text-align: center; opacity: .75; }}
.quik-view thead th {{ font-weight: 600; border-bottom: 1px solid var(--jp-border-color1, rgba(128, 128, 128, .6)); }}
.quik-view b {{ color: var(--jp-content-font-color0, inherit); }}
.quik-view .quik-curve {{ flex: 1 1 {NARROWEST}px; max-width: {WIDTH}px; min-height: {HEIGHT * 3 // 4}px; }}
.quik-view .quik-curve svg, .quik-view .quik-curve img {{ display: block; margin: 0; max-width: 100%; height: auto; }}
.quik-view .quik-chart {{ position: relative; }}
.quik-view .quik-hints {{ position: absolute; display: flex; }}
.quik-view .quik-hints i {{ flex: 1; }}
.quik-view .quik-note {{ min-height: 1.45em; font-size: 12px; margin: 2px 0 0; }}
.quik-view .quik-buttons {{ display: flex; flex-flow: row wrap; gap: 2px 6px; align-items: center;
  margin-bottom: 4px; }}
.quik-view .quik-footer {{ font-size: 12px; opacity: .85; min-height: 1.45em; }}
.quik-view .quik-footer label {{ margin-right: 14px; cursor: pointer; }}
.quik-view .quik-footer input {{ vertical-align: -2px; margin: 0 4px 0 0; }}
.quik-view .quik-log, .quik-view:has(.quik-log-scale:checked) .quik-linear {{ display: none; }}
.quik-view:has(.quik-log-scale:checked) .quik-log {{ display: inline; }}
.quik-view > br {{ display: none; }}
.quik-picture {{ color-scheme: light; }}
body[data-jp-theme-light=false] .quik-picture, body.vscode-dark .quik-picture,
html[theme=dark] .quik-picture {{ color-scheme: dark; }}
</style>"""

INTERRUPT = "the kernel's interrupt (■) stops the run and keeps everything"


def outlook(status: RunStatus) -> Outlook:
    """What is known of the run that a view draws, before it has rows."""
    scheduler = status.parameters.get("scheduler")
    return Outlook(status.epochs, status.columns, lr_moves=scheduler not in (None, "", "None"))


def bar(status: RunStatus) -> str:
    """A bar for the run and a thin one for the epoch; under them how far it is, and how fast."""
    validating = status.step is not None and status.step.phase == "valid"
    return (
        '<div class="quik-bar">'
        + _progress("the whole run", status.run_share)
        + _progress("this epoch", status.epoch_share, "quik-epoch", "quik-valid" if validating else "")
        + _status(status.status())
        + _status(status.facts())
        + "</div>"
    )


def _progress(label: str, share: float, kind: str = "", part: str = "") -> str:
    percent = f"{100 * share:.1f}"
    return (
        f'<div class="quik-progress {kind}" role="progressbar" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div class="{part}" style="width:{percent}%"></div></div>'
    )


def _status(words: str) -> str:
    return f'<div class="quik-status" title="{escape(words)}">{escape(words)}</div>'


def rows(history: History, ahead: Outlook) -> str:
    """The latest rows, with room for those to come."""
    words = table.html(history, ROWS, ahead.columns).replace("<table>", '<table align="left">', 1)
    if ahead.epochs is None:
        return f'<div class="quik-table">{words}</div>'
    lines = 1 + min(ROWS, max(len(history), ahead.epochs))
    return f'<div class="quik-table" style="min-height:{LINE_HEIGHT * lines:.1f}em">{words}</div>'


def curve(history: History, status: RunStatus) -> str:
    """The curve on both scales, of which the checkbox in the footer shows one, and what it tells.

    It belongs into an element of class `quik-curve`, which is the one that makes room for it beside the table.
    """
    return svg(history, outlook(status)) + note(history, status)


def note(history: History, status: RunStatus) -> str:
    """The sentence under the curve, or its empty place."""
    return f'<div class="quik-note">{escape(observation(history, status.data_wait))}</div>'


def footer(history: History, status: RunStatus, *words: str) -> str:
    """The switch of the scale, then the words, where the run trains, and which columns the curve leaves out."""
    switch = '<label><input type="checkbox" class="quik-log-scale">log scale</label>'
    return f'<div class="quik-footer">{switch}{small_print(history, status, *words)}</div>'


def small_print(history: History, status: RunStatus, *words: str) -> str:
    """The words, where the run trains, and which columns the curve leaves out."""
    where = status.start.where if status.start is not None else ""
    names = [one_line(name, 24) for name in left_out(history, outlook(status))]
    not_drawn = f"in the table only: {', '.join(names)}" if names else ""
    return " · ".join(escape(part) for part in (*words, where, not_drawn) if part)
