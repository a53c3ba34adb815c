"""The style sheet of the pages (light and dark by the reader's setting, narrow and wide screens, print), and the script
that sorts their tables.
"""

__all__ = ["COLOURS", "CSS", "SCRIPT"]

COLOURS = 8  # --s0 to --s7; a chart's further lines take them again, dashed

CSS = """
:root { --paper:#f6f7f9; --card:#fff; --ink:#1b1f24; --soft:#5c6672; --line:#e2e6eb; --accent:#1f6feb; --warn:#d1472f;
  --s0:#1f6feb; --s1:#d9730d; --s2:#1a8f5a; --s3:#8b4fd1; --s4:#c2255c; --s5:#0b8ea0; --s6:#8a6d00; --s7:#5c6672;
  --good:#1a7f4b; --bad:#c03a22; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171b; --card:#1d2127; --ink:#e7eaee; --soft:#9aa5b1;
  --line:#313842; --accent:#5b9dff; --warn:#ff7b63; --s0:#5b9dff; --s1:#ffa657; --s2:#4ccb8f; --s3:#b88bff;
  --s4:#ff7aa8; --s5:#4fd0de; --s6:#e0c050; --s7:#9aa5b1; --good:#57c98d; --bad:#ff8a73; } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","DejaVu Sans",sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px }
h1 { font-size:26px; line-height:1.2; margin:0 0 4px; overflow-wrap:anywhere }
h2 { font-size:18px; margin:38px 0 12px }
h3 { font-size:14px; margin:0 0 6px; font-weight:600 }
p { margin:6px 0 } .soft, figcaption, .note { color:var(--soft) } .note { font-size:13px }
a { color:var(--accent) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(158px,1fr)); gap:12px; margin:20px 0 }
.tile, .card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px }
.tile b { display:block; font-size:20px; line-height:1.3; white-space:nowrap; font-variant-numeric:tabular-nums }
.tile span { color:var(--soft); font-size:13px }
.tile.lead b { color:var(--accent) }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); gap:14px }
.wide { overflow-x:auto }
svg { display:block; width:100%; height:auto }
svg text { fill:var(--ink); font-family:inherit } svg .tick { fill:var(--soft); font-size:12px }
svg .axis { fill:var(--soft); font-size:12px }
.grid { stroke:var(--line); stroke-width:1 } .mark { stroke:var(--soft) }
.line { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round } .raw { opacity:.28; stroke-width:1 }
.s0 { --own:var(--s0) } .s1 { --own:var(--s1) } .s2 { --own:var(--s2) } .s3 { --own:var(--s3) }
.s4 { --own:var(--s4) } .s5 { --own:var(--s5) } .s6 { --own:var(--s6) } .s7 { --own:var(--s7) }
.line { stroke:var(--own) } .dot { fill:var(--own) } .line.dashed { stroke-dasharray:6 4 }
.hit { fill:var(--accent) } .miss { fill:var(--warn) } .edge { fill:none; stroke:var(--line) }
.number { font-size:11px; font-variant-numeric:tabular-nums } svg .number.on { fill:#fff }
@media (prefers-color-scheme: dark) { svg .number.on { fill:#0b0e12 } }
table { border-collapse:separate; border-spacing:0; width:100%; font-variant-numeric:tabular-nums }
th, td { padding:5px 10px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th { font-size:13px; color:var(--soft); font-weight:600; vertical-align:bottom }
th:first-child, td:first-child, td.left, th.left { text-align:left }
td.left { white-space:normal; overflow-wrap:break-word; min-width:140px }
tr.mean td { font-weight:600; border-bottom:0 }
th button { font:inherit; color:inherit; background:none; border:0; padding:0; cursor:pointer; white-space:nowrap }
th button:hover { color:var(--ink) } th button:focus-visible { outline:2px solid var(--accent); outline-offset:3px }
th button::after { content:"↕"; opacity:.35; margin-left:4px } th[aria-sort] button::after { opacity:1 }
th[aria-sort=ascending] button::after { content:"↑" } th[aria-sort=descending] button::after { content:"↓" }
.tall { max-height:min(80vh,900px); overflow:auto }
.tall thead th { position:sticky; top:-12px; background:var(--card); z-index:2 }
.sd { color:var(--soft); font-size:12px } .good { color:var(--good) } .bad { color:var(--bad) }
.delta { display:block; font-size:12.5px } .warning { border-left:4px solid var(--warn); margin:0 0 10px }
ul.runs { list-style:none; margin:16px 0; padding:0; display:grid; gap:6px } ul.runs li { overflow-wrap:anywhere }
ul.runs i, th i { display:inline-block; width:22px; height:0; border-top:3px solid var(--own); margin-right:8px;
  vertical-align:4px } i.dashed { border-top-style:dashed !important }
.heat { display:grid; grid-template-columns:max-content max-content; overflow:auto; font-size:11px; color:var(--soft) }
.heat.tall { max-height:min(80vh,760px) } .heat > svg { width:auto; height:auto }
.heat .corner, .heat .rows { position:sticky; left:0; background:var(--card) }
.heat .corner, .heat .columns { position:sticky; top:0; background:var(--card); z-index:1 } .heat .corner { z-index:2 }
.heat .rows span { display:block; max-width:130px; padding-right:6px; text-align:right; height:var(--cell);
  line-height:var(--cell); overflow:hidden; text-overflow:ellipsis; white-space:nowrap }
.heat .columns { display:flex; align-items:flex-end } .heat .columns span { writing-mode:vertical-rl;
  transform:rotate(180deg); width:var(--cell); line-height:var(--cell); max-height:130px; padding-top:6px;
  overflow:hidden; text-overflow:ellipsis; white-space:nowrap }
.swatch { display:inline-block; width:13px; height:13px; border-radius:3px; margin-right:8px; vertical-align:-1px;
  border:1px solid rgba(128,128,128,.5) }
.bar { display:inline-block; width:110px; height:8px; border-radius:4px; background:var(--line); margin-left:10px;
  overflow:hidden; vertical-align:1px }
.bar i { display:block; height:100%; background:var(--accent) }
.split { display:grid; grid-template-columns:minmax(0,3fr) minmax(0,2fr); gap:14px; align-items:start }
.split.large { grid-template-columns:minmax(0,1fr) }
@media (max-width: 900px) { .split { grid-template-columns:minmax(0,1fr) } .split .mistakes { order:-1 } }
.legend { display:flex; flex-wrap:wrap; gap:4px 16px; font-size:13px; margin:0 0 12px }
.shot { margin:0 0 16px } .shot > div { display:grid; grid-template-columns:repeat(3,minmax(0,1fr)); gap:8px }
.shot figure { margin:0 } .shot img { width:100%; display:block; border-radius:6px }
figcaption { font-size:12px; margin-top:2px }
@media (max-width: 640px) { .shot > div { grid-template-columns:minmax(0,1fr) } main { padding:18px 12px 40px }
  svg.chart .tick { font-size:18px } svg.chart .key, svg.chart .axis { font-size:15px } svg .upright { display:none }
  svg.chart { overflow:visible } .mistakes td.left { min-width:0 }
  th, td { padding:5px 8px } th, th button { white-space:normal; text-align:inherit }
  .bar { display:none } .heat .rows span { max-width:84px }
  .heat .columns span { max-height:84px } .wide th:first-child, .wide td:first-child { position:sticky; left:-14px;
  background:var(--card); z-index:1; min-width:34vw; max-width:44vw; white-space:normal;
  overflow-wrap:break-word; padding-left:4px }
  .tall thead th:first-child { z-index:3 } }
dl { display:grid; grid-template-columns:max-content minmax(0,1fr); gap:4px 18px; margin:0 }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere }
details { margin-top:12px } summary { cursor:pointer; color:var(--accent) }
pre, code { font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace }
pre { overflow-x:auto; margin:8px 0 0 }
footer { margin-top:40px; color:var(--soft); font-size:13px }
@media print { body { background:#fff } .card, .tile, .shot { break-inside:avoid } .tall, .wide { max-height:none;
  overflow:visible } th button::after { content:"" } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], given = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button"), text = head.hasAttribute("data-text");
    const value = row => row.cells[column].textContent.replace("\u2212", "-").trim();
    const known = row => text || !Number.isNaN(parseFloat(value(row)));
    const order = (a, b) => text ? value(a).localeCompare(value(b)) : parseFloat(value(a)) - parseFloat(value(b));
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = {null: "ascending", ascending: "descending"}[head.getAttribute("aria-sort")];
      heads.forEach(other => other.removeAttribute("aria-sort"));
      const rows = given.slice(), sign = next === "descending" ? -1 : 1;
      if (next) {
        head.setAttribute("aria-sort", next);
        rows.sort((a, b) => known(b) - known(a) || (known(a) ? sign * order(a, b) : 0));
      }
      body.append(...rows);
    });
  });
}
"""
