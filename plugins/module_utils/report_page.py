"""How a rollout's report looks, and the little that moves in it.

The pictures stretch with the page while lines and texts keep their width, so that a phone shows the same page. Colours
are told apart without colour, too: by dashes, signs and words. Nothing is loaded from anywhere.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f8fafc;--ink:#0f172a;--soft:#475569;--edge:#cbd5e1;--grid:#e2e8f0;
  --shade:#f1f5f9;--canary:#b45309;--band:#f59e0b33;--base:#1d4ed8;--good:#166534;--goodbg:#dcfce7;--bad:#991b1b;
  --badbg:#fee2e2;--hold:#475569;--holdbg:#e2e8f0;--rule:#b91c1c;--t0:#b45309;--t1:#1d4ed8;--t2:#0f766e;--t3:#a21caf;
  --t4:#475569;--t5:#4d7c0f;--t6:#0369a1;--t7:#78716c}
@media(prefers-color-scheme:dark){:root{--bg:#0b1120;--card:#131c2f;--ink:#e8edf5;--soft:#a3b1c6;--edge:#334155;
  --grid:#1e293b;--shade:#111a2c;--canary:#fbbf24;--band:#fbbf2433;--base:#7fb0ff;--good:#86efac;--goodbg:#123524;
  --bad:#fca5a5;--badbg:#451a1f;--hold:#cbd5e1;--holdbg:#293548;--rule:#f87171;--t0:#fbbf24;--t1:#7fb0ff;--t2:#5eead4;
  --t3:#f0abfc;--t4:#cbd5e1;--t5:#bef264;--t6:#7dd3fc;--t7:#d6d3d1}
}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif;
  overflow-wrap:anywhere}
main{max-width:70rem;margin:0 auto;padding:1.2rem 1rem 5rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .6rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:0}
p{margin:.4rem 0}
.quiet,small,dt{color:var(--soft)}
small{font-size:.82rem}
code{font-size:.86em}
header{border-left:.4rem solid var(--hold);padding:.2rem 0 .2rem 1rem}
header.good{border-color:var(--good)}
header.bad{border-color:var(--bad)}
header p{font-size:1.05rem}
header ul{margin:.5rem 0;padding-left:1.2rem}
.badge{display:inline-block;padding:.05rem .5rem;border-radius:1rem;font-size:.86rem;font-weight:600;white-space:nowrap;
  color:var(--hold);background:var(--holdbg)}
.badge.good{color:var(--good);background:var(--goodbg)}
.badge.bad{color:var(--bad);background:var(--badbg)}
.badge i{font-style:normal}
.note{background:var(--holdbg);border-radius:.4rem;padding:.4rem .7rem}
.cards{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1.2rem 0;
  padding:0}
.cards li{background:var(--card);border:1px solid var(--edge);border-radius:.5rem;padding:.6rem .8rem}
.cards span,.cards small{display:block;color:var(--soft)}
.cards span{font-size:.86rem}
.cards b{display:block;font-size:1.45rem;line-height:1.3}
figure{margin:2.2rem 0 0}
figcaption{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;align-items:baseline}
.keys{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:0;padding:0;font-size:.84rem;color:var(--soft)}
.keys b{color:var(--ink)}
.key{width:30px;height:10px;margin-right:.35rem;overflow:visible}
.plot{position:relative;height:12rem;margin:1.2rem .3rem 1.7rem 4rem;border-bottom:1px solid var(--edge)}
.plot svg{position:absolute;inset:0;width:100%;height:100%}
.plot span{position:absolute;font-size:.76rem;color:var(--soft);white-space:nowrap;pointer-events:none}
.y{right:calc(100% + .4rem);transform:translateY(-50%)}
.x{top:calc(100% + .25rem);transform:translateX(-50%)}
.plot .ruled{right:.2rem;transform:translateY(-105%);color:var(--rule)}
.plot .named{top:-1.05rem;overflow:hidden;text-overflow:ellipsis;padding-left:.2rem;font-weight:600}
path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid)}
.stage{fill:var(--shade)}
.line{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dots{stroke-width:5;stroke-linecap:round;opacity:.5}
.canary{stroke:var(--canary)}
.baseline{stroke:var(--base);stroke-dasharray:7 3}
.target{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:2 3}
.p50{stroke-width:1.2}
.baseline.p50{stroke-dasharray:2 3}
.band{fill:var(--band)}
.rule{stroke:var(--rule);stroke-width:1.3;stroke-dasharray:8 4}
.mark{stroke:var(--soft);stroke-dasharray:1 4}
.mark.watchdog,.mark.rollback{stroke:var(--rule);stroke-dasharray:none}
.test{stroke-width:1.5}
.t0{stroke:var(--t0);stroke-width:2.4}
.t1{stroke:var(--t1);stroke-dasharray:8 3}
.t2{stroke:var(--t2);stroke-dasharray:2 3}
.t3{stroke:var(--t3);stroke-dasharray:10 3 2 3}
.t4{stroke:var(--t4);stroke-dasharray:5 5}
.t5{stroke:var(--t5);stroke-dasharray:1 2}
.t6{stroke:var(--t6);stroke-dasharray:12 6}
.t7{stroke:var(--t7);stroke-dasharray:3 6}
.lanes{position:relative;margin:0 .3rem 0 4rem}
.lanes .flag{position:absolute;transform:translateX(-50%)}
.flag{font-size:.76rem;font-weight:600;padding:0 .3rem;border-radius:.3rem;background:var(--holdbg);color:var(--hold);
  text-decoration:none;white-space:nowrap}
.flag.watchdog,.flag.rollback{background:var(--badbg);color:var(--bad)}
.cross{position:absolute;top:0;bottom:0;width:1px;background:var(--ink);pointer-events:none}
#at{position:fixed;left:0;right:0;bottom:0;background:var(--card);border-top:1px solid var(--edge);padding:.4rem 1rem;
  font-size:.86rem;text-align:center}
table{width:100%;border-collapse:collapse;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums}
td ul{margin:.3rem 0;padding-left:1.1rem}
.journal td:first-child{font-variant-numeric:tabular-nums;white-space:nowrap}
tr:target td{background:var(--holdbg)}
.meter{display:block;height:.35rem;min-width:5rem;border-radius:.2rem;background:var(--grid);margin-top:.25rem}
.meter i{display:block;height:100%;border-radius:.2rem;background:var(--canary)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:.5rem 1.5rem;margin:0}
dt{font-size:.86rem}
dd{margin:0}
a:focus-visible,summary:focus-visible{outline:2px solid var(--base);outline-offset:2px}
summary{cursor:pointer}
@media(max-width:42rem){h1{font-size:1.3rem}
.plot,.lanes{margin-left:3.2rem}
.plot{height:10rem}
.odd{display:none}
.cards{grid-template-columns:1fr 1fr}
thead{position:absolute;clip-path:inset(50%);height:1px;overflow:hidden}
table,tbody,tr,td{display:block;width:100%}
tr{border-bottom:1px solid var(--edge);padding:.45rem 0}
td{border:0;padding:.1rem 0 .1rem 7.6rem;position:relative;min-height:1.6rem}
td.n{text-align:left}
td::before{content:attr(data-t);position:absolute;left:0;width:7.2rem;color:var(--soft);font-size:.82rem}
td:first-child{font-size:1rem}
}
@media print{#at{display:none}
body{font-size:12px}
figure,tr{break-inside:avoid}
}
"""

#: A line across all pictures at the look under the pointer, and what that look said. Without it nothing is missing.
#: Neither "<" nor "&" in it: the page is well-formed XML, too.
SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const plots = [...document.querySelectorAll(".plot")];
const at = document.getElementById("at");
const lines = plots.map(plot => {
  const line = document.createElement("i");
  line.className = "cross";
  line.hidden = true;
  plot.append(line);
  return line;
});
const show = event => {
  const box = event.currentTarget.getBoundingClientRect();
  const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  const time = data.from + part * (data.until - data.from);
  let near = data.looks[0];
  for (const look of data.looks) if (Math.abs(near[0] - time) > Math.abs(look[0] - time)) near = look;
  const left = 100 * (near[0] - data.from) / (data.until - data.from) + "%";
  for (const line of lines) { line.hidden = false; line.style.left = left; }
  at.hidden = false;
  at.textContent = near[1];
};
const hide = () => { at.hidden = true; for (const line of lines) line.hidden = true; };
if (data.looks.length) for (const plot of plots) {
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}
"""
