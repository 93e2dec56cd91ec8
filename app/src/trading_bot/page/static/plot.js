// A plot: lines over time as SVG, marks, a limit, a legend, a cursor for mouse, finger and keyboard, and a table of the same figures.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 16, BOTTOM = 20;

/** An HTML element with text or children. Text never becomes markup. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Three digits, and a letter for thousands and millions. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  for (const [from, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= from) return `${+(value / (letter === "k" ? 1e3 : from)).toPrecision(3)}${letter}`;
  }
  return size !== 0 && size < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));
}

export function clock(at, span = 0) {
  const parts = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (span <= 900) parts.second = "2-digit";
  return new Date(at * 1000).toLocaleTimeString("en-GB", parts);
}

function ticks(highest) {
  const rough = highest / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let at = 0; at < highest + step * 0.999; at += step) found.push(+at.toPrecision(10));
  return found;
}

/** A colour for each release's slot or each host, the same in every plot: what P50 and P99 share is their release. */
function colours(lines) {
  const owners = [...new Set(lines.map((line) => line.name.replace(/ P\d+$/, "")))];
  const taken = new Map();
  for (const owner of owners) {
    const wanted = owner.endsWith(" blue") ? 0 : owner.endsWith(" green") ? 1 : taken.size;
    const used = new Set(taken.values());
    taken.set(owner, [wanted, 0, 1, 2, 3, 4, 5, 6, 7].find((each) => !used.has(each)) ?? taken.size % 8);
  }
  return (line) => `c${taken.get(line.name.replace(/ P\d+$/, ""))}${line.name.endsWith(" P50") ? " dashed" : ""}`;
}

export class Plot {
  constructor(name) {
    this.title = el("h3", { id: `plot-${name}` });
    this.unit = el("span", { class: "quiet" });
    this.svg = drawn("svg", { role: "img" });
    this.svg.setAttribute("aria-labelledby", `plot-${name}`);
    this.tip = el("div", { class: "tip", hidden: "" });
    this.box = el("div", { class: "plot", tabindex: "0", role: "group", "aria-label": "Move with the arrow keys" }, this.svg, this.tip);
    this.said = el("p", { class: "skip", "aria-live": "polite" });
    this.keys = el("ul", { class: "keys" });
    this.table = el("div", { class: "scroll", tabindex: "0", role: "region" });
    this.more = el("details", {}, el("summary", {}, "Table"), this.table);
    this.figure = el("figure", {}, el("figcaption", {}, this.title, this.unit), this.box, this.said, this.keys, this.more);
    this.at = null;
    this.box.addEventListener("pointermove", (event) => this.point(event.clientX - this.box.getBoundingClientRect().left));
    this.box.addEventListener("pointerleave", () => this.show(null));
    this.box.addEventListener("blur", () => this.show(null));
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.more.addEventListener("toggle", () => this.fill());
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  update(plot, times, marks) {
    Object.assign(this, { plot, times, marks });
    this.title.textContent = plot.title;
    this.unit.textContent = plot.unit;
    this.box.setAttribute("aria-label", `${plot.title}: move along the time with the arrow keys`);
    this.table.setAttribute("aria-label", `${plot.title} as a table`);
    this.draw();
    this.fill();
  }

  draw() {
    if (!this.plot || !this.box.clientWidth) return;
    const { plot, times } = this;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    const values = plot.lines.flatMap((line) => line.points.map((point) => point[1]));
    let highest = Math.max(0, ...values);
    const limit = plot.limit.length ? plot.limit.at(-1)[1] : 0;
    // A limit that is far away would press the lines to the ground; what is far below it must not look large either.
    if (limit && limit <= 2.5 * (highest || limit)) highest = Math.max(highest, limit);
    highest = Math.max(highest, limit / 20);
    const steps = ticks(plot.unit === "%" && highest > 50 && highest <= 100 ? 100 : highest || 1);
    this.top = plot.unit === "%" ? Math.min(steps.at(-1), Math.max(100, highest)) : steps.at(-1);
    const parts = [];
    for (const step of steps.filter((each) => each <= this.top)) {
      parts.push(drawn("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(step), y2: this.y(step) }));
      parts.push(drawn("text", { x: LEFT - 6, y: this.y(step) + 4, "text-anchor": "end" }, short(step)));
    }
    const span = times.last - times.first;
    const count = this.width < 420 ? 3 : 5;
    for (let each = 0; each <= count; each += 1) {
      const at = times.first + (span * each) / count;
      const anchor = each === 0 ? "start" : each === count ? "end" : "middle";
      parts.push(drawn("text", { x: this.x(at), y: this.height - 4, "text-anchor": anchor }, clock(at, span)));
    }
    let tag = null, before = -Infinity;
    for (const mark of this.marks) {
      const x = this.x(mark.at);
      parts.push(drawn("line", { class: `mark ${mark.kind}`, x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM }));
      // Letters that would lie on each other stand side by side.
      if (x - before < 12) tag.textContent += mark.tag;
      else parts.push((tag = drawn("text", { class: `tag ${mark.kind}`, x: (before = x), y: TOP - 4 }, mark.tag)));
    }
    const colour = colours(plot.lines);
    if (plot.limit.length && limit <= this.top) parts.push(this.line(plot.limit, "limit"));
    for (const line of plot.lines) parts.push(this.line(line.points, colour(line)));
    this.cursor = drawn("line", { class: "cursor", y1: TOP, y2: this.height - BOTTOM, visibility: "hidden" });
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...parts, this.cursor);
    this.box.querySelector(".empty")?.remove();
    if (!values.length) this.box.append(el("p", { class: "empty" }, "No figures in this span"));
    const keys = plot.lines.map((line) => this.legend(line.name, colour(line), short(line.points.at(-1)[1])));
    if (plot.limit.length) keys.push(this.legend("limit", "limit", short(limit)));
    this.keys.replaceChildren(...keys);
    this.show(this.at);
  }

  legend(name, colour, value) {
    const sample = drawn("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
    sample.append(drawn("path", { d: "M0 5H24", class: colour }));
    return el("li", {}, sample, `${name} `, el("b", {}, value));
  }

  x(at) {
    return LEFT + ((at - this.times.first) / (this.times.last - this.times.first)) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return this.height - BOTTOM - (value / this.top) * (this.height - TOP - BOTTOM);
  }

  // Where figures are missing, the line has a gap.
  line(points, colour) {
    let path = "", before = -Infinity;
    for (const [at, value] of points) {
      path += `${at - before > 2.5 * this.times.step ? "M" : "L"}${this.x(at).toFixed(1)} ${this.y(Math.max(0, value)).toFixed(1)}`;
      before = at;
    }
    if (points.length === 1) path += "h2";
    return drawn("path", { d: path, class: colour });
  }

  point(x) {
    if (!this.plot) return;
    const { first, last } = this.times;
    const share = (x - LEFT) / (this.width - LEFT - RIGHT);
    this.show(share < 0 || share > 1 ? null : first + share * (last - first));
  }

  key(event) {
    const { first, last, step } = this.times ?? {};
    const moves = { ArrowLeft: -step, ArrowRight: step, PageDown: -10 * step, PageUp: 10 * step };
    if (event.key === "Escape") return this.show(null);
    let at = this.at ?? last;
    if (event.key in moves) at += moves[event.key];
    else if (event.key === "Home") at = first;
    else if (event.key === "End") at = last;
    else return;
    event.preventDefault();
    this.show(Math.min(last, Math.max(first, at)));
    this.said.textContent = [...this.tip.children].map((child) => child.textContent).join(", ");
  }

  /** The values at the point nearest to a moment; null hides them. */
  show(at) {
    const { first, last, step } = this.times ?? {};
    this.at = at === null || !(at >= first) ? null : Math.min(last, first + Math.round((at - first) / step) * step);
    this.tip.hidden = this.at === null;
    this.cursor?.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    if (this.at === null || !this.cursor) return;
    const x = this.x(this.at);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    const rows = this.plot.lines.map((line) => `${line.name}: ${short(this.valueOf(line))} ${this.plot.unit}`);
    const near = this.marks.filter((mark) => Math.abs(this.x(mark.at) - x) < 6).map((mark) => `${mark.tag} ${mark.text}`);
    this.tip.replaceChildren(el("p", {}, el("b", {}, clock(this.at))), ...[...rows, ...near].map((row) => el("p", {}, row)));
    const room = x < this.width / 2;
    this.tip.style.left = room ? `${x + 10}px` : "auto";
    this.tip.style.right = room ? "auto" : `${this.width - x + 10}px`;
  }

  valueOf(line, at = this.at) {
    return line.points.find((point) => point[0] === at)?.[1] ?? null;
  }

  fill() {
    if (!this.more.open || !this.plot) return;
    const { first, last, step } = this.times;
    const rows = Array.from({ length: 13 }, (_, each) => last - Math.round(((last - first) * each) / 12 / step) * step);
    const head = el("tr", {}, el("th", { scope: "col" }, "Time"), ...this.plot.lines.map((line) => el("th", { scope: "col" }, `${line.name}, ${this.plot.unit}`)));
    const body = rows.map((at) => el("tr", {}, el("th", { scope: "row" }, clock(at)), ...this.plot.lines.map((line) => el("td", {}, short(this.valueOf(line, at))))));
    this.table.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
  }
}
