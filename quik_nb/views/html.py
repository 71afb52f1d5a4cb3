"""The pieces of HTML that the live widget is made of, and their style: bar, table, curve and footer.

Heights are reserved beforehand so that nothing jumps. The log scale is switched by a checkbox and CSS alone, since a
widget's button does not reach the kernel while its cell runs.
"""

from html import escape

from quik_nb.history import History
from quik_nb.views import table
from quik_nb.views.chart_layout import HEIGHT, WIDTH
from quik_nb.views.status import RunStatus
from quik_nb.views.svg import svg

ROWS = 9
"""Rows of the live table, so that it stands as high as the curve beside it."""

STYLE = f"""<style>
.quik-view {{ display: flex; flex-flow: row wrap; align-items: flex-start; gap: 4px 28px; padding: 2px 0;
  font-size: 13px; color: var(--jp-content-font-color1, inherit); max-width: 100%; }}
.quik-view .widget-html {{ margin: 0; height: auto; width: auto; max-width: 100%; overflow: visible;
  font-size: inherit; }}
.quik-view .widget-html-content {{ line-height: 1.45; width: 100%; overflow-x: auto; overflow-y: hidden; }}
.quik-view .quik-wide {{ flex: 1 1 100%; }}
.quik-view .quik-bar {{ max-width: 860px; min-height: 34px; font-variant-numeric: tabular-nums; }}
.quik-view .quik-progress {{ height: 6px; border-radius: 3px; overflow: hidden; margin: 2px 0 5px;
  background: var(--jp-layout-color3, rgba(128, 128, 128, .3)); }}
.quik-view .quik-progress > div {{ height: 100%; border-radius: 3px; background: #2f83cf; }}
.quik-view .quik-status {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
.quik-view table {{ border-collapse: collapse; border: 0; margin: 0; font-variant-numeric: tabular-nums; }}
.quik-view th, .quik-view td {{ padding: 2px 0 2px 16px; border: 0; white-space: nowrap; text-align: right;
  background: none; }}
.quik-view th:first-child, .quik-view td:first-child {{ padding-left: 0; }}
.quik-view td[colspan] {{ text-align: center; opacity: .75; }}
.quik-view th {{ font-weight: 600; border-bottom: 1px solid var(--jp-border-color1, rgba(128, 128, 128, .6)); }}
.quik-view b {{ color: var(--jp-content-font-color0, inherit); }}
.quik-view .quik-curve {{ width: {WIDTH}px; max-width: 100%; min-height: {HEIGHT * 3 // 4}px; }}
.quik-view .quik-curve svg {{ display: block; }}
.quik-view .quik-buttons {{ display: flex; flex-flow: row wrap; gap: 2px 6px; align-items: center; }}
.quik-view .quik-footer {{ font-size: 12px; opacity: .85; }}
.quik-view .quik-footer label {{ margin-right: 14px; cursor: pointer; }}
.quik-view .quik-footer input {{ vertical-align: -2px; margin: 0 4px 0 0; }}
.quik-view .quik-log, .quik-view:has(.quik-log-scale:checked) .quik-linear {{ display: none; }}
.quik-view:has(.quik-log-scale:checked) .quik-log {{ display: inline; }}
</style>"""

INTERRUPT = "the kernel's interrupt (■) stops the run and keeps everything"


def bar(run_status: RunStatus) -> str:
    """The bar within the epoch, and the status line under it."""
    percent = f"{100 * run_status.share:.0f}"
    status = escape(run_status.status())
    return (
        f'<div class="quik-bar"><div class="quik-progress" role="progressbar" aria-label="{status}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        f'<div class="quik-status" title="{status}">{status}</div></div>'
    )


def rows(history: History, epochs: int | None) -> str:
    """The latest rows, with room for those to come."""
    expected = min(ROWS, max(len(history), epochs or 0))
    lines = 1 + expected + (max(len(history), epochs or 0) > ROWS)
    return f'<div class="quik-table" style="min-height:{lines * 1.75:.1f}em">{table.html(history, ROWS)}</div>'


def curve(history: History, epochs: int | None) -> str:
    """The curve on both scales, of which the checkbox in the footer shows one."""
    return f'<div class="quik-curve">{svg(history, epochs, ("linear", "log"))}</div>'


def footer(where: str, hint: str) -> str:
    """The style, the switch of the scale, where the run trains; drawn once, so that the switch stays as it was set."""
    words = " · ".join(escape(part) for part in (hint, where) if part)
    switch = '<label><input type="checkbox" class="quik-log-scale">log scale</label>'
    return f'{STYLE}<div class="quik-footer">{switch}{words}</div>'
