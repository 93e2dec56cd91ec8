// Fetches what there is to show every few seconds while somebody looks, and puts it on the page.

import { clock, el, Plot, short } from "./plot.js";

const EVERY = 5000, PATIENCE = 20000, OLD = 60;
const STAGES = [5, 20, 50, 100];
const $ = (id) => document.getElementById(id);
const plots = new Map(), shown = new Map();
let view = null, away = "", timer = 0, asked = 0;

const span = () => document.querySelector("#spans input:checked").value;
const seconds = () => Date.now() / 1000;
const badge = (text, kind = "") => el("span", { class: `badge ${kind}` }, text);
const percent = (value) => (value === null ? "–" : `${short(value)}%`);
const unit = (value, name) => (value === null ? "–" : `${short(value)} ${name}`);

function ago(at) {
  const passed = Math.max(0, Math.round(seconds() - at));
  if (passed < 60) return `${passed} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  return passed < 172800 ? `${Math.floor(passed / 3600)} h ago` : `${Math.floor(passed / 86400)} d ago`;
}

function moment(at) {
  const date = new Date(at * 1000);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString("en-CA")} `;
  return el("time", { datetime: date.toISOString() }, `${day}${clock(at)}`, el("span", { "data-at": at }, ` (${ago(at)})`));
}

/** Puts something on the page where it has changed: whoever reads or has the focus there is left alone. */
function put(id, what, make) {
  const now = JSON.stringify(what);
  if (shown.get(id) === now) return;
  shown.set(id, now);
  $(id).replaceChildren(...[make(what)].flat().filter(Boolean));
}

function table(label, head, rows) {
  const columns = el("tr", {}, ...head.map((name) => (name ? el("th", { scope: "col" }, name) : el("td"))));
  const body = rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, ...[cell].flat()))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, el("thead", {}, columns), el("tbody", {}, ...body)));
}

function glance({ releases, instances, alerts, cut, halted, degraded, rollout, trouble }) {
  const stable = releases.find((release) => release.role === "stable");
  const canary = releases.find((release) => release.role === "canary");
  const serving = instances.filter((each) => each.role === "stable" || each.role === "canary");
  const ready = serving.filter((each) => each.ready).length;
  const loud = alerts.filter((alert) => !alert.quiet);
  const worst = loud.some((alert) => alert.severity === "critical") ? "bad" : loud.length ? "warn" : "good";
  const mode = halted ? ["Halted", "nobody trades", "bad"] : degraded ? ["Reduce-only", "degraded", "warn"] : ["Trading", "not halted, not degraded", "good"];
  const all = releases.reduce((sum, release) => sum + (release.rate ?? 0), 0);
  const cards = [
    ["Serves", stable?.version ?? "not known", stable ? `${stable.slot}, ${stable.release}` : "no release is known to be stable", stable ? "good" : "bad"],
    ["Canary", canary ? `${(cut ?? 0) / 100}%` : "none", rollout ? `rollout: ${rollout.stage}` : canary ? canary.version : "no rollout under way", canary ? "warn" : ""],
    ["Ready", `${ready} of ${serving.length}`, "slots with a part in traffic", serving.length && ready === serving.length ? "good" : "bad"],
    ["Alerts", String(loud.length), loud.length ? `${loud.filter((alert) => alert.severity === "critical").length} critical` : "none fires", worst],
    ["Orders", unit(all, "/s"), stable && stable.p99 !== null ? `P99 ${unit(stable.p99, "ms")}` : "last 2 minutes", ""],
    ["Mode", ...mode],
  ];
  return cards.map(([name, value, note, kind]) => el("li", { class: trouble ? "" : kind }, el("span", {}, name), el("b", {}, value), el("small", {}, note)));
}

function alertsOf({ alerts, pending, watched, silences, notifier }) {
  const found = alerts.map((alert) => {
    const since = Date.parse(alert.since) / 1000;
    const where = Object.entries(alert.labels).map(([name, value]) => `${name} ${value}`).join(", ");
    const link = /^https?:\/\//.test(alert.runbook) ? el("a", { href: alert.runbook, rel: "noreferrer" }, "Runbook") : el("code", {}, alert.runbook);
    const severity = { critical: "bad", warning: "warn" }[alert.severity] ?? "";
    return el("li", { class: `alert ${alert.quiet ? "" : alert.severity}` },
      el("p", {}, badge(alert.severity, severity), alert.quiet ? " " : "", alert.quiet ? badge("silenced") : "", " ", el("b", {}, alert.summary || alert.name)),
      el("p", { class: "quiet" }, `${alert.name}: ${alert.value}, threshold ${alert.threshold}${where ? `; ${where}` : ""}`),
      el("p", { class: "quiet" }, "Since ", Number.isFinite(since) ? moment(since) : "?", alert.runbook ? " · " : "", alert.runbook ? link : ""));
  });
  const notes = [];
  if (!watched) notes.push("The watchdog alert does not fire: rules are not looked at, and nothing else would fire either.");
  if (silences) notes.push(`Silences are not known: ${silences}.`);
  if (pending) notes.push(`${pending} more would fire if they went on.`);
  if (notifier.channels !== null) {
    const owed = notifier.waiting ? `somebody has been owed a message for ${Math.round(notifier.waiting)} s` : "nothing waits";
    notes.push(`Notifier: ${short(notifier.channels)} channels, ${owed}, ${short(notifier.unacknowledged ?? 0)} not acknowledged.`);
  }
  return [found.length ? el("ul", { class: "plain" }, ...found) : el("p", {}, badge("none fires", "good")), ...notes.map((note) => el("p", { class: "quiet" }, note))];
}

function rolloutOf({ rollout, cut }) {
  if (!rollout) return null;
  const share = (cut ?? 0) / 100;
  const stages = STAGES.map((stage) => el("li", share >= stage ? { class: "done" } : {}, `${stage}%`));
  return [
    el("p", {}, el("b", {}, `Rollout ${rollout.id}`), " ", badge(rollout.paused ? `paused at ${rollout.stage}` : rollout.stage, "warn"), ` ${share}% of accounts on the canary`),
    el("ol", { class: "stages", "aria-label": "Stages" }, ...stages),
    el("p", { class: "quiet" }, "Began ", rollout.started === null ? "?" : moment(rollout.started), ", last heard of ", rollout.heard === null ? "?" : moment(rollout.heard)),
  ];
}

function releasesOf(releases) {
  if (!releases.length) return el("p", {}, "No instance says what it runs.");
  const brief = (text) => text.replace(/^sha256:/, "").slice(0, 12);
  const roles = { stable: "good", canary: "warn" };
  const rows = [
    ["Part in traffic", (one) => badge(one.role || "not known", roles[one.role])],
    ["Slot", (one) => one.slot],
    ["Hosts ready", (one) => `${one.ready} of ${one.hosts}`],
    ["Orders", (one) => unit(one.rate, "/s")],
    ["Errors", (one) => percent(one.errors)],
    ["Refused", (one) => percent(one.rejections)],
    ["P50", (one) => unit(one.p50, "ms")],
    ["P99", (one) => unit(one.p99, "ms")],
    ["Release", (one) => one.release],
    ["Image", (one) => el("code", { title: one.image }, brief(one.image))],
    ["Config", (one) => el("code", { title: one.config }, brief(one.config))],
  ];
  return [table("Releases beside each other", ["", ...releases.map((one) => one.version)], rows.map(([name, cell]) => [name, ...releases.map(cell)])), el("p", { class: "quiet" }, "Rates and response times of the last 2 minutes.")];
}

function state(instance) {
  if (instance.ready) return badge("ready", "good");
  if (instance.up) return badge("not ready", instance.role === "stable" ? "bad" : "warn");
  return instance.role === "stable" || instance.role === "canary" ? badge("down", "bad") : badge("nothing runs");
}

function fleetOf({ instances, others }) {
  const slots = [...new Set(instances.map((each) => each.slot))].sort();
  const hosts = [...new Set(instances.map((each) => each.host))];
  const rows = hosts.map((host) => [host, ...slots.map((slot) => {
    const found = instances.find((each) => each.host === host && each.slot === slot);
    if (!found) return "–";
    const parts = [found.version, found.role, found.member ? "member" : ""].filter(Boolean);
    return [state(found), el("small", {}, parts.join(" · ") || "–")];
  })]);
  const watched = others.map(({ host, jobs }) => [host, Object.entries(jobs).flatMap(([job, up]) => [badge(up ? job : `${job} down`, up ? "good" : "bad"), " "])]);
  return [table("Slots of the app hosts", ["App host", ...slots], rows), table("What else answers", ["Host", "Answers for its figures"], watched)];
}

function marksOf(marks) {
  if (!marks.length) return el("p", { class: "quiet" }, "No deployment and no rollout in this span.");
  return el("ol", { "aria-label": "Deployments and stages of rollouts" }, ...marks.map((mark) => el("li", { class: mark.kind }, el("b", {}, mark.tag), `${clock(mark.at)} ${mark.text}`)));
}

function reportsOf(reports) {
  if (!reports.length) return el("p", { class: "quiet" }, "No rollout has left a report yet.");
  return el("ul", {}, ...reports.map((report) => el("li", {}, el("a", { href: `reports/${encodeURIComponent(report.id)}.html` }, report.id), " ", moment(report.at))));
}

/** Letters for marks: A to Z, then numbers. */
const tagged = (marks) => marks.map((mark, number) => ({ ...mark, tag: number < 26 ? String.fromCharCode(65 + number) : String(number + 1) }));

function show() {
  put("glance", { releases: view.releases, instances: view.instances, alerts: view.alerts, cut: view.cut, halted: view.halted, degraded: view.degraded, rollout: view.rollout, trouble: view.trouble }, glance);
  put("alerts", { alerts: view.alerts, pending: view.pending, watched: view.watched, silences: view.silences, notifier: view.notifier }, alertsOf);
  put("rollout", { rollout: view.rollout, cut: view.cut }, rolloutOf);
  put("releases", view.releases, releasesOf);
  put("fleet", { instances: view.instances, others: view.others }, fleetOf);
  put("reports", view.reports, reportsOf);
  const marks = tagged(view.marks);
  put("marks", marks, marksOf);
  for (const plot of view.plots) {
    if (!plots.has(plot.name)) {
      plots.set(plot.name, new Plot(plot.name));
      $("plots").append(plots.get(plot.name).figure);
    }
    const now = JSON.stringify([plot, view.times, marks]);
    if (shown.get(`plot-${plot.name}`) !== now) {
      shown.set(`plot-${plot.name}`, now);
      plots.get(plot.name).update(plot, view.times, marks);
    }
  }
}

function age() {
  for (const each of document.querySelectorAll("[data-at]")) each.textContent = ` (${ago(Number(each.dataset.at))})`;
  const at = view?.at;
  const of = at ? `What is shown is of ${clock(at)}, ${ago(at)}.` : "Nothing is known yet.";
  let said = "", kind = "bad";
  if (away) said = `This page's server does not answer (${away}). ${of}`;
  else if (view?.trouble) said = `Prometheus does not answer: ${view.trouble}. ${of}`;
  else if (view && (view.newest === null || view.at - view.newest > OLD)) {
    said = `Prometheus has had no new figures ${view.newest === null ? "at all" : `since ${clock(view.newest)}, ${ago(view.newest)}`}.`;
    kind = "warn";
  }
  // The age counts on, but is not read aloud again each second.
  const quiet = said.replace(/, \d+ \w+ ago/g, "");
  if (shown.get("trouble") !== quiet) {
    shown.set("trouble", quiet);
    $("trouble").replaceChildren(...(said ? [el("p", { class: `banner ${kind}` }, said)] : []));
  } else if (said) $("trouble").firstChild.textContent = said;
  $("fresh").textContent = at ? `As of ${clock(at)}, ${ago(at)}; asks again every ${EVERY / 1000} s` : "Loading";
}

async function refresh() {
  clearTimeout(timer);
  // Nobody looks: nothing is asked until somebody does.
  if (document.hidden) return;
  const mine = ++asked;
  try {
    const answer = await fetch(`view.json?span=${span()}`, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (answer.status === 401) { location.assign("login"); return; }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const found = await answer.json();
    if (mine !== asked) return;
    away = "";
    if (found.at) { view = found; show(); } else view = { trouble: found.trouble };
  } catch (error) {
    if (mine !== asked) return;
    away = error.name === "TimeoutError" ? `no answer within ${PATIENCE / 1000} s` : error.message;
  }
  age();
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY);
}

document.addEventListener("visibilitychange", refresh);
$("spans").addEventListener("change", refresh);
setInterval(() => { if (!document.hidden) age(); }, 1000);
refresh();
