"""The style sheet of the report page: light and dark by the reader's setting, narrow and wide screens, print."""

__all__ = ["CSS"]

CSS = """
:root { --paper:#f6f7f9; --card:#fff; --ink:#1b1f24; --soft:#5c6672; --line:#e2e6eb; --accent:#1f6feb; --warn:#d1472f;
  --s0:#1f6feb; --s1:#d9730d; --s2:#1a8f5a; --s3:#8b4fd1; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171b; --card:#1d2127; --ink:#e7eaee; --soft:#9aa5b1;
  --line:#313842; --accent:#5b9dff; --warn:#ff7b63; --s0:#5b9dff; --s1:#ffa657; --s2:#4ccb8f; --s3:#b88bff; } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","DejaVu Sans",sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px }
h1 { font-size:26px; line-height:1.2; margin:0 0 4px; overflow-wrap:anywhere }
h2 { font-size:18px; margin:38px 0 12px }
h3 { font-size:14px; margin:0 0 6px; font-weight:600 }
p { margin:6px 0 } .soft, figcaption, .note { color:var(--soft) } .note { font-size:13px }
a { color:var(--accent) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin:20px 0 }
.tile, .card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px }
.tile b { display:block; font-size:21px; line-height:1.3; white-space:nowrap; font-variant-numeric:tabular-nums }
.tile span { color:var(--soft); font-size:13px }
.tile.lead b { color:var(--accent) }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); gap:14px }
.wide { overflow-x:auto }
svg { display:block; width:100%; height:auto }
svg text { fill:var(--ink); font-family:inherit } svg .tick { fill:var(--soft); font-size:12px }
svg .axis { fill:var(--soft); font-size:12px }
.grid { stroke:var(--line); stroke-width:1 } .mark { stroke:var(--soft) }
.line { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round } .raw { opacity:.28; stroke-width:1 }
.line.s0 { stroke:var(--s0) } .line.s1 { stroke:var(--s1) } .line.s2 { stroke:var(--s2) } .line.s3 { stroke:var(--s3) }
.dot.s0 { fill:var(--s0) } .dot.s1 { fill:var(--s1) } .dot.s2 { fill:var(--s2) } .dot.s3 { fill:var(--s3) }
.hit { fill:var(--accent) } .miss { fill:var(--warn) } .edge { fill:none; stroke:var(--line) }
.number { font-size:11px; font-variant-numeric:tabular-nums } svg .number.on { fill:#fff }
@media (prefers-color-scheme: dark) { svg .number.on { fill:#0b0e12 } }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th, td { padding:5px 10px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th { font-size:13px; color:var(--soft); font-weight:600 }
th:first-child, td:first-child, td.left, th.left { text-align:left }
tr.mean td { font-weight:600; border-bottom:0 }
.swatch { display:inline-block; width:13px; height:13px; border-radius:3px; margin-right:8px; vertical-align:-1px;
  border:1px solid rgba(128,128,128,.5) }
.bar { display:inline-block; width:110px; height:8px; border-radius:4px; background:var(--line); margin-left:10px;
  overflow:hidden; vertical-align:1px }
.bar i { display:block; height:100%; background:var(--accent) }
.split { display:grid; grid-template-columns:minmax(0,3fr) minmax(0,2fr); gap:14px; align-items:start }
@media (max-width: 900px) { .split { grid-template-columns:minmax(0,1fr) } }
.legend { display:flex; flex-wrap:wrap; gap:4px 16px; font-size:13px; margin:0 0 12px }
.shot { margin:0 0 16px } .shot > div { display:grid; grid-template-columns:repeat(3,minmax(0,1fr)); gap:8px }
.shot figure { margin:0 } .shot img { width:100%; display:block; border-radius:6px }
figcaption { font-size:12px; margin-top:2px }
@media (max-width: 640px) { .shot > div { grid-template-columns:minmax(0,1fr) } main { padding:18px 12px 40px } }
dl { display:grid; grid-template-columns:max-content minmax(0,1fr); gap:4px 18px; margin:0 }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere }
details { margin-top:12px } summary { cursor:pointer; color:var(--accent) }
pre, code { font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace }
pre { overflow-x:auto; margin:8px 0 0 }
footer { margin-top:40px; color:var(--soft); font-size:13px }
@media print { body { background:#fff } .card, .tile, .shot { break-inside:avoid } }
"""
