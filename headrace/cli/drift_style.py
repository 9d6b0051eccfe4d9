"""The look of the drift page: light and dark, from 360 px up, no request to anywhere."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ground: #f6f5f2; --card: #ffffff; --line: #dedcd6; --ink: #1c2126; --soft: #5a636d;
  --training: #a9b1bb; --training-line: #6d7783; --period: #0a5fd0; --period-soft: #0a5fd022;
  --alarm: #b3261e; --alarm-soft: #fdecea; --notice: #7d5200; --notice-soft: #fdf3dc;
  --none: #17692f; --none-soft: #e7f4ea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1317; --card: #171d23; --line: #2b333c; --ink: #e8edf2; --soft: #a3afbb;
    --training: #4c5763; --training-line: #93a0ad; --period: #6db3ff; --period-soft: #6db3ff2b;
    --alarm: #ff9a8f; --alarm-soft: #3a1b1a; --notice: #f2c063; --notice-soft: #352a12;
    --none: #7fd79a; --none-soft: #14301f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 0 16px 64px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 16px; top: 8px; background: var(--card); padding: 8px 12px; z-index: 1; }
:focus-visible { outline: 3px solid var(--period); outline-offset: 2px; border-radius: 4px; }
header { padding: 36px 0 8px; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.15; margin: 0 0 6px;
  letter-spacing: -.02em; }
h2 { font-size: 1.15rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 8px; }
a { color: var(--period); }
.soft { color: var(--soft); }
.verdict {
  display: flex; gap: 14px; align-items: center; margin: 20px 0 0; padding: 16px 18px;
  border-radius: 12px; border: 1px solid currentcolor;
}
.verdict strong { display: block; font-size: 1.2rem; line-height: 1.3; }
.verdict span { color: var(--ink); }
.verdict svg { flex: none; width: 34px; height: 34px; }
.alarm { color: var(--alarm); background: var(--alarm-soft); }
.notice { color: var(--notice); background: var(--notice-soft); }
.none { color: var(--none); background: var(--none-soft); }
.chip {
  display: inline-block; font-size: .75rem; font-weight: 650; line-height: 1; padding: 5px 9px;
  border-radius: 99px; white-space: nowrap;
}
ul.notes { margin: 16px 0 0; padding-left: 20px; color: var(--soft); }
ol.findings { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px; }
ol.findings li, .card, .table {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
ol.findings li { padding: 14px 16px; border-left-width: 5px; }
ol.findings li.is-alarm { border-left-color: var(--alarm); }
ol.findings li.is-notice { border-left-color: var(--notice); }
.line { display: flex; flex-wrap: wrap; gap: 6px 10px; align-items: center; margin-bottom: 4px; }
.line a { font-weight: 650; overflow-wrap: anywhere; }
.cards { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.card { padding: 16px; display: flex; flex-direction: column; gap: 10px; scroll-margin-top: 12px; }
.card:target { outline: 3px solid var(--period); }
.head { display: flex; justify-content: space-between; gap: 10px; align-items: start; }
.card p.say::first-letter, ol.findings p::first-letter { text-transform: uppercase; }
.card p.say { margin: 0; font-size: .9rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .78rem; color: var(--soft); }
svg text { fill: var(--soft); font: 10px system-ui, "DejaVu Sans", sans-serif; }
svg .rule { stroke: var(--line); stroke-width: 1; }
svg .t { fill: var(--training); } svg .t-line { stroke: var(--training-line); }
svg .p { fill: var(--period); } svg .p-line { stroke: var(--period); }
svg .p-area { fill: var(--period-soft); stroke: var(--period); stroke-width: 1.6;
  stroke-linejoin: round; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .85rem; color: var(--soft);
  margin: 0 0 12px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.key .t { background: var(--training); }
.key .p { background: var(--period-soft); border: 2px solid var(--period); }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px 12px; margin: 0;
  font-size: .82rem; }
dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.only { display: inline-flex; gap: 8px; align-items: center; margin: 0 0 12px; font-size: .9rem; }
.only input { width: 18px; height: 18px; accent-color: var(--period); }
main:has(#only:checked) .card.quiet { display: none; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; }
footer { margin-top: 40px; font-size: .85rem; color: var(--soft); }
@media print { .only, .skip { display: none; } .card { break-inside: avoid; } }
"""
