"use strict";
// Shows the numbers in #data and computes none: sums are made for display alone. Arrays are [step][unit].
// The equations themselves are in equations.js.

const data = JSON.parse(document.getElementById("data").textContent);
const GATES = ["i", "f", "g", "o"];
const MAPS = ["i", "f", "g", "o", "c", "h"];
const NAMES = { i: "input gate", f: "forget gate", g: "candidate", o: "output gate", c: "cell", h: "output" };
const LOSSES = { all: "every word", last: "the last word alone" };
const T = data.sentence.names.length - 1;

// What the page is showing. time: the backward pass has come down to this step, counted from 0.
const state = { layer: 0, loss: "all", time: T - 1, norm: "h", map: "f", way: "forward", t: T - 1, u: 0, timer: 0 };
const grids = { forward: {}, back: {} };

// ---- small tools -----------------------------------------------------------------------------------------

const $ = id => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

// "dz_t^f" with its sub- and superscripts; braces hold more than one character.
function math(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(/([_^])(?:\{([^}]*)\}|(.))/gu)) {
    parts.push(...italics(text.slice(end, match.index)));
    parts.push(el(match[1] === "_" ? "sub" : "sup", {}, match[2] ?? match[3]));
    end = match.index + match[0].length;
  }
  return el("span", { class: "math" }, ...parts, ...italics(text.slice(end)));
}

function italics(text) {
  return text.split(/([A-Za-z]+)/).filter(Boolean).map(part =>
    /^(?!tanh|mean|and|likewise)[A-Za-z]/.test(part) ? el("i", {}, part) : part);
}

function number(x, digits = 4) {
  const size = Math.abs(x);
  const text = x === 0 ? "0" : size >= 1e-3 && size < 1e5 ? x.toPrecision(digits) : x.toExponential(digits - 1);
  return text.replace(/-/g, "−").replace("e+", "e");
}

const inParentheses = x => (x < 0 ? `(${number(x)})` : number(x));
const percent = p => (p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toPrecision(2)}%` : number(100 * p, 2) + "%");
const word = t => data.sentence.names[t];
const layer = () => data.layers[state.layer];
const lossGradients = () => layer().gradients[state.loss];
const gradientName = map => (GATES.includes(map) ? `z_${map}` : map);
const symbol = map => (GATES.includes(map) ? `dz^${map}` : `d${map}`);

function wordNode(position) {
  const written = data.sentence.words[position], known = data.sentence.names[position];
  if (written === known) return el("span", {}, written);
  return el("span", { class: "unknown", title: `read as ${known}` }, written);
}

function table(node, head, rows) {
  node.className = "plain";
  const cell = (tag, content) => el(tag, typeof content === "number" ? {} : { class: "text" },
    typeof content === "number" ? number(content) : content);
  node.replaceChildren(
    el("thead", {}, el("tr", {}, ...head.map(content => el("th", { scope: "col" }, content)))),
    el("tbody", {}, ...rows.map(row => el("tr", {}, ...row.map(content => cell("td", content))))));
}

function radios(fieldset, name, choices, chosen, choose) {
  for (const [value, label] of choices) {
    const input = el("input", { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    fieldset.append(el("label", {}, input, label));
  }
}

// ---- the sentence and the next word ----------------------------------------------------------------------

function makeSentence() {
  for (let t = 0; t < T; t++) {
    const button = el("button", { type: "button", onclick: () => goTo(t) },
      el("small", {}, String(t + 1)), wordNode(t));
    $("sentence").append(button);
  }
  table($("next-table"), ["step", "reads", "next word", "probability", "rank", "likeliest"],
    data.next.map((step, t) => [String(t + 1), wordNode(t), wordNode(t + 1), step.target, String(step.rank), step.top[0][0]]));
}

function showNext() {
  [...$("sentence").children].forEach((button, t) => button.setAttribute("aria-pressed", t === state.time));
  const step = data.next[state.time], expected = word(state.time + 1);
  const rows = step.top.some(([name]) => name === expected) ? step.top : [...step.top, [expected, step.target]];
  const bars = el("div", { class: "bars" });
  for (const [name, p] of rows) {
    const mark = name === expected ? "expected" : "";
    bars.append(el("span", { class: `word ${mark}` }, name), el("span", { class: "bar" }, el("span", { "--p": p })),
      el("span", { class: `p ${mark}` }, percent(p)));
  }
  $("next").replaceChildren(el("p", {}, "After “", wordNode(state.time), "” the likeliest words are"), bars,
    el("p", {}, "Next comes “", wordNode(state.time + 1), `”: ${percent(step.target)}, rank ${step.rank.toLocaleString("en")}, ` +
      `which costs ${number(-Math.log(step.target), 3)} nats.`));
}

// ---- heat maps -------------------------------------------------------------------------------------------

function makeMaps() {
  for (const way of ["forward", "back"]) {
    $(`maps-${way}`).replaceChildren(...MAPS.map(map => makeMap(way, map)));
  }
}

function makeMap(way, map) {
  const isBack = way === "back", units = layer().units, values = valuesOf(way, map);
  const largest = Math.max(...values.flat().map(Math.abs)) || 1;
  const title = el("h3", {}, math(isBack ? symbol(map) : map), " ",
    el("span", { class: "soft" }, isBack ? `gradient at the ${NAMES[map]}` : NAMES[map]));
  const grid = el("table", { role: "grid", "aria-label":
    `${isBack ? "gradient of the " : ""}${NAMES[map]}: a row for each unit, a column for each step` });
  grid.append(el("colgroup", {}, el("col", { class: "row" })));
  const every = Math.ceil(T / 12);  // as many numbers as there is room for
  const heads = values.map((_, t) => el("th", { scope: "col", title: word(t), class: (T - 1 - t) % every ? "small" : null }, String(t + 1)));
  grid.append(el("thead", {}, el("tr", { role: "row" }, el("th", { "aria-label": "unit", class: "row" }), ...heads)));
  const cells = values.map(() => []), body = el("tbody");
  units.forEach((unit, u) => {
    const row = el("tr", { role: "row" }, el("th", { scope: "row", class: "row" }, String(unit)));
    values.forEach((step, t) => {
      const x = step[u], scale = colour(way, map, x, largest);
      const cell = el("td", { role: "gridcell", tabindex: -1, class: x < 0 ? "negative" : null, "--m": scale.toFixed(3) });
      cells[t][u] = cell;
      row.append(cell);
    });
    body.append(row);
  });
  grid.append(body);
  grids[way][map] = { cells, heads, values };
  const find = target => {
    const cell = target.closest("td");
    return cell && [cell.cellIndex - 1, cell.parentNode.sectionRowIndex];
  };
  grid.addEventListener("click", event => {
    const place = find(event.target);
    if (place) choose(way, map, ...place, true);
    if (place) openSheet(true);
  });
  grid.addEventListener("focusin", event => { const place = find(event.target); if (place) choose(way, map, ...place, false); });
  grid.addEventListener("mouseover", event => {
    const cell = event.target.closest("td");
    if (cell) cell.title = cell.getAttribute("aria-label");
  });
  grid.addEventListener("keydown", event => move(event, way, map, find(event.target)));
  return el("div", { class: "map" }, title, el("div", { class: "scroll" }, grid), legend(way, map, largest));
}

function valuesOf(way, map) {
  return way === "back" ? lossGradients()[gradientName(map)] : layer().values[map];
}

// Gates from 0 to 1; the rest in both directions. Gradients by the cube root, so that small ones are seen too.
function colour(way, map, x, largest) {
  if (way === "back") return Math.cbrt(Math.abs(x) / largest);
  return "ifo".includes(map) ? x : Math.abs(x) / (map === "c" ? largest : 1);
}

function legend(way, map, largest) {
  const share = way === "forward" && "ifo".includes(map);
  const most = way === "back" || map === "c" ? number(largest, 2) : "1";
  return el("div", { class: "legend" }, share ? "0" : `−${most}`,
    el("span", { class: `ramp ${share ? "share" : "signed"}` }), share ? "1" : most);
}

function move(event, way, map, place) {
  if (!place) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-T, 0], End: [T, 0] };
  if (event.key === "Enter" || event.key === " ") {
    openSheet(true);
    event.preventDefault();
  }
  if (!(event.key in steps)) return;
  event.preventDefault();
  const clamp = (x, most) => Math.min(Math.max(x, 0), most);
  const [dt, du] = steps[event.key];
  choose(way, map, clamp(place[0] + dt, T - 1), clamp(place[1] + du, layer().units.length - 1), true);
}

// A chosen square of the backward maps that the pass has not reached takes the pass there.
function choose(way, map, t, u, takesFocus) {
  const same = state.way === way && state.map === map && state.t === t && state.u === u;
  Object.assign(state, { way, map, t, u });
  if (way === "back" && t < state.time) { stop(); state.time = t; showTime(); } else if (!same) showChosen();
  if (takesFocus) grids[way][map].cells[t][u].focus();
}

// Only what changes is touched: a phone has thousands of squares to show.
function showMaps() {
  for (const [way, maps] of Object.entries(grids)) {
    for (const [map, grid] of Object.entries(maps)) {
      const { cells, heads, values } = grid;
      for (const t of new Set([grid.now ?? state.time, state.time])) {
        [heads[t], ...cells[t]].forEach(node => node.classList.toggle("now", t === state.time));
      }
      grid.now = state.time;
      cells.forEach((column, t) => {
        const waits = way === "back" && t < state.time;
        if (column.waits === waits) return;
        column.waits = waits;
        column.forEach((cell, u) => {
          cell.classList.toggle("waiting", waits);
          cell.setAttribute("aria-label", `${way === "back" ? `d${map}` : map}, step ${t + 1} ${word(t)}, ` +
            `unit ${layer().units[u]}: ${waits ? "not reached yet" : number(values[t][u])}`);
          cell.removeAttribute("title");
        });
      });
    }
  }
}

function showChosen() {
  for (const [way, maps] of Object.entries(grids)) {
    for (const [map, grid] of Object.entries(maps)) {
      const cell = grid.cells[state.t][state.u];
      if (grid.chosen && grid.chosen !== cell) {
        grid.chosen.classList.remove("chosen");
        grid.chosen.tabIndex = -1;
        grid.chosen.removeAttribute("aria-selected");
      }
      grid.chosen = cell;
      cell.classList.add("chosen");
      cell.tabIndex = 0;
      cell.setAttribute("aria-selected", way === state.way && map === state.map);
    }
  }
  showCell();
}

// ---- time ------------------------------------------------------------------------------------------------

function goTo(t) { stop(); state.time = t; state.t = t; showTime(); }

function showTime() {
  $("time").value = state.time + 1;
  $("time").setAttribute("aria-valuetext", `step ${state.time + 1}, ${word(state.time)}`);
  $("time-now").textContent = `${state.time + 1} of ${T}: ${data.sentence.words[state.time]}`;
  showMaps();
  showNext();
  showLedger();
  showNumbers();
  showChosen();
}

function play() {
  if (state.timer) { stop(); return; }
  if (state.time === 0) { state.time = T - 1; }
  showTime();
  $("play").textContent = "⏸ Pause";
  state.timer = setInterval(() => {
    if (state.time > 0) state.time -= 1;
    state.t = state.time;
    showTime();
    if (state.time === 0) stop();
  }, 650);
}

function stop() {
  clearInterval(state.timer);
  state.timer = 0;
  $("play").textContent = "▶ Run backward";
}

// ---- one step of the backward pass: lengths over all units -----------------------------------------------

function showLedger() {
  $("ledger").replaceChildren(
    el("h3", {}, `What happens at step ${state.time + 1}, in this order (lengths over all units of the layer)`),
    el("ol", {}, ...ledgerOf(state.time).map(([no, equation, said]) =>
      el("li", {}, el("span", { class: "soft" }, `(${no}) `), math(equation), el("p", {}, said)))));
}

function showNumbers() {
  const t = state.time, values = layer().values, gradients = lossGradients();
  const names = [...MAPS, ...MAPS.map(map => symbol(map))];
  table($("numbers"), ["unit", ...names.map(math)], layer().units.map((unit, u) => [String(unit),
    ...MAPS.map(map => values[map][t][u]), ...MAPS.map(map => gradients[gradientName(map)][t][u])]));
}

// ---- one cell: equations with their numbers, check, code -------------------------------------------------

function showCell() {
  const { map, t, u } = state, unit = layer().units[u];
  const value = layer().values[map][t][u], waits = t < state.time;
  $("cell-title").replaceChildren(math(`${map}_t`), `, ${NAMES[map]}`);
  $("cell-place").replaceChildren(`Layer ${state.layer + 1}, step ${t + 1}, reading “`, wordNode(t), `”, unit ${unit}`);
  const shown = waits ? "not reached" : number(lossGradients()[gradientName(map)][t][u], 3);
  $("cell-summary").replaceChildren(math(map), ` ${number(value, 3)}, `, math(symbol(map)), ` ${shown}, step ${t + 1}, unit ${unit}`);
  $("cell-forward").replaceChildren(el("h3", {}, "Forward"), ...forwardEquations(map, t, u));
  $("cell-backward").replaceChildren(el("h3", {}, `Backward, from the loss of ${LOSSES[state.loss]}`),
    ...(waits ? [el("p", {}, `The backward pass is at step ${state.time + 1} and has not come here yet.`)] : backwardEquations(map, t, u)));
  $("cell-check").replaceChildren(...(waits ? [] : checks(map, t, u)));
  const numbers = EQUATIONS[data.cell][map].flat();
  $("cell-code").replaceChildren(el("h3", {}, "The lines of code"), ...numbers.flatMap(no => data.code[no].map(block => code(no, block, map))));
}

function checks(map, t, u) {
  const names = gradientsOf(map);
  return [el("h3", {}, "Proof by differences"), ...names.flatMap(name => check(name, t, u, names.length > 1)),
    el("p", { class: "soft" }, "This number alone was moved by ±ε, ±2ε and ±3ε, and the rest of the sentence read anew each time.")];
}

function check(name, t, u, isOneOfMany) {
  const analytic = lossGradients()[name][t][u];
  const numerical = layer().numerical[state.loss][name][t][u], error = layer().error[state.loss][name][t][u];
  const row = (label, text) => el("tr", {}, el("th", { scope: "row" }, label), el("td", {}, text));
  const [letter, gate] = name.split("_"), head = math(gate ? `d${letter}_t^${gate}` : `d${letter}_t`);
  return [isOneOfMany ? el("p", {}, head) : null, el("table", { class: "check" }, el("tbody", {},
    row("by the equations", number(analytic, 9)), row("by differences", number(numerical, 9)),
    row("relative error", `${number(error, 2)} ${error <= 1e-6 ? "✓" : "✗ (expected at most 1e−6)"}`)))].filter(Boolean);
}

function code(no, block, map) {
  const at = GATES.indexOf(map), own = at >= 0 ? `:, ${"IFGO"[at]}]` : "";
  const other = line => own && /:, [IFGO]\]/.test(line.text) && !line.text.includes(own) && !line.text.includes(":O]");
  const lines = block.lines.filter(line => !other(line));
  if (!lines.some(line => line.hit)) return null;
  return el("div", { class: "code" }, el("span", { class: "where" }, `(${no}) ${block.file}, ${block.within}`),
    el("pre", { "aria-label": `${block.file}, line ${lines.find(line => line.hit).number}` },
      ...lines.map(line => el("code", { class: line.hit ? "hit" : null }, el("span", { class: "at" }, String(line.number)), line.text))));
}

// On a narrow screen the cell's equations lie in a sheet at the bottom, which must not hide the square itself.
function openSheet(open) {
  const wasOpen = $("cell-toggle").getAttribute("aria-expanded") === "true";
  $("cell-toggle").setAttribute("aria-expanded", open);
  const sheet = document.querySelector("aside"), isSheet = $("cell-toggle").offsetParent !== null;
  document.documentElement.style.scrollPaddingBottom = isSheet ? `${sheet.offsetHeight + 12}px` : "";
  if (open && isSheet && !wasOpen) grids[state.way][state.map].cells[state.t][state.u].scrollIntoView({ block: "nearest" });
}

// ---- memory ----------------------------------------------------------------------------------------------

const curveName = curve => (curve.forget === null ? "learned" : `f = ${curve.forget}`);

function showMemory() {
  const name = state.norm === "h" ? "‖dh‖" : "‖dc‖";
  const curves = data.memory.map(curve => curve.layers[state.layer][state.norm]);
  const width = Math.max(280, $("memory").clientWidth), height = Math.min(300, Math.max(210, width / 2.4));
  const left = 46, right = width - 74, top = 12, bottom = height - 40;
  const logs = curves.flat().filter(x => x > 0).map(Math.log10);
  const low = Math.floor(Math.min(...logs, 0)), high = Math.max(Math.ceil(Math.max(...logs)), low + 1);
  const x = t => (T === 1 ? right : left + ((right - left) * t) / (T - 1));
  const y = value => bottom - ((bottom - top) * (Math.log10(Math.max(value, 10 ** low)) - low)) / (high - low);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label":
    `${name} over the steps for ${curves.length} kinds of forget gates; the table below has the numbers` });
  const every = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; power += every) {
    svg.append(el("line", { class: "grid", x1: left, x2: right, y1: y(10 ** power), y2: y(10 ** power) }),
      el("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, power === 0 ? "1" : `1e${power}`.replace("-", "−")));
  }
  const skip = Math.ceil(T / (width / 34));
  for (let t = T - 1; t >= 0; t -= skip) svg.append(el("text", { x: x(t), y: bottom + 16, "text-anchor": "middle" }, String(t + 1)));
  svg.append(el("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, `← ${name} walks backward, step by step`));
  const ends = curves.map(curve => y(curve[0])), taken = [];
  curves.forEach((curve, k) => {
    svg.append(el("path", { class: `c${k}`, d: curve.map((value, t) => `${t ? "L" : "M"}${x(t).toFixed(1)} ${y(value).toFixed(1)}`).join("") }),
      ...curve.map((value, t) => el("circle", { class: `c${k}`, cx: x(t), cy: y(value), r: 2.6 })));
  });
  curves.map((curve, k) => [y(curve[T - 1]), k]).sort((a, b) => a[0] - b[0]).forEach(([at, k]) => {
    const place = Math.max(at, (taken.at(-1) ?? -99) + 15);
    taken.push(place);
    svg.append(el("text", { class: `c${k}`, x: right + 9, y: place + 4 }, curveName(data.memory[k])));
  });
  $("memory").replaceChildren(svg);
  const left_over = (curve, k) => `${curveName(data.memory[k])}: ${percent(curve[0] / curve[T - 1])}`;
  const learned = data.memory[0].layers[state.layer].f;
  const mean = learned.reduce((a, b) => a + b) / learned.length, most = Math.max(...learned);
  $("memory-said").textContent = T === 1 ? "A sentence of one step has nothing to remember." :
    `Of the ${name} of the last step, there is left at the first, ${T - 1} steps back: ${curves.map(left_over).join("; ")}. ` +
    `The learned gates are ${number(mean, 2)} in the mean, those of the unit that forgets least ${number(most, 2)}.`;
  $("memory-plain").hidden = normalizes();
  $("memory-normalised").hidden = !normalizes();
  table($("memory-table"), ["step", "reads", ...data.memory.map(curveName)],
    data.next.map((_, t) => [String(t + 1), wordNode(t), ...curves.map(curve => curve[t])]));
}

// ---- masks -----------------------------------------------------------------------------------------------

function aboutMask(place) {
  const [kind, index] = place.split("."), of = index === undefined ? "" : `, layer ${Number(index) + 1}`;
  return {
    embedding: ["words", "Rows of the embedding: a word that is struck out is read as zeros, wherever it stands."],
    embedding_output: ["embedding output", "What was looked up; a row for each step."],
    input_weight: [`weights on the input${of}`, "Elements of W_ih, one mask for all steps."],
    recurrent_weight: [`recurrent weights${of}`, "Elements of W_hh (DropConnect): the same connections fail at every step, so memory is not shaken."],
    candidate: [`candidate${of}`, "tanh(g) before it enters the cell, drawn anew at every step; the cell itself is never masked."],
    input: [`input${of}`, "Units of the layer's input; a row for each step."],
    output: [`output${of}`, "Units of the layer's output; a row for each step."],
  }[kind];
}

function showMasks() {
  $("masks-said").textContent = data.masks.length
    ? "In training alone. These are masks that the model itself drew for one window of training on this sentence; " +
      "what is dropped is orange, what is kept is scaled up by 1 / keep probability."
    : "This model was trained without any dropout.";
  $("masks").replaceChildren(...data.masks.map(drawMask));
}

function drawMask(mask) {
  const [name, said] = aboutMask(mask.place);
  const facts = `${mask.shape.join(" × ")}; ${percent(mask.dropped)} dropped, keep probability ${mask.keep_prob}`;
  const head = [el("h3", {}, name), el("p", {}, said, el("br"), facts)];
  if (mask.place === "embedding" && mask.rows.length === 1) {
    const words = [...mask.rows[0]].map((kept, t) => el("span", { class: kept === "1" ? null : "gone" }, data.sentence.words[t]));
    return el("div", { class: "mask" }, ...head, el("div", { class: "words" }, ...words));
  }
  const tall = mask.place.includes("weight");  // lies on its side: gates from left to right
  const rows = tall ? [...mask.rows[0]].map((_, column) => mask.rows.map(row => row[column]).join("")) : mask.rows;
  let path = "";
  rows.forEach((row, y) => [...row].forEach((kept, x) => { if (kept === "0") path += `M${x} ${y}h1v1h-1z`; }));
  const whole = tall && mask.rows.length === mask.shape[0];
  const gates = whole ? [1, 2, 3].map(k => `M${(k * mask.shape[0]) / 4} 0v${rows.length}`).join("") : "";
  const cut = mask.rows.length < mask.shape[0] && tall || rows[0].length > 95 && !tall ? " (a corner of it)" : "";
  return el("div", { class: "mask" }, ...head, el("svg", { viewBox: `0 0 ${rows[0].length} ${rows.length}`, role: "img",
    "aria-label": `${name}: ${facts}`, preserveAspectRatio: "none", style: `aspect-ratio: ${rows[0].length} / ${rows.length}` },
    el("path", { class: "dropped", d: path }), el("path", { class: "gates", d: gates })),
    whole ? el("p", {}, "gates i, f, g, o from left to right") : cut ? el("p", {}, cut) : null);
}

// ---- all together ----------------------------------------------------------------------------------------

function showLayer() {
  state.u = Math.min(state.u, layer().units.length - 1);
  makeMaps();
  showTime();
  showMemory();
}

function showAbout() {
  const { sizes, losses } = data, errors = data.layers.flatMap(one => Object.values(one.error).flatMap(by => Object.values(by)));
  const flat = errors.flat(2), worst = flat.reduce((a, b) => Math.max(a, b), 0), shown = data.layers.map(one => one.units.length);
  $("model").textContent = `${data.model} ${sizes.units.length === 1 ? "One layer" : `${sizes.units.length} layers`} of ` +
    `${[...new Set(sizes.units)].join(" and ")} units, ${sizes.vocabulary.toLocaleString("en")} words, ` +
    `${sizes.parameters.toLocaleString("en")} parameters. Loss of this sentence: ${number(losses.all)} nats a word, ` +
    `perplexity ${number(Math.exp(losses.all), 3)}.`;
  $("made").textContent = `All numbers are the model's own, computed in float64 when the page was written; the gradients are those ` +
    `of the engine's backward pass. ${flat.length.toLocaleString("en")} of them were checked: by the loss L at six places, ` +
    `(45 [L(+ε) − L(−ε)] − 9 [L(+2ε) − L(−2ε)] + [L(+3ε) − L(−3ε)]) / 60ε with ε = ${data.nudge}` +
    `${normalizes() ? ", where a normalisation follows times the deviation of its row" : ""}. The worst relative error is ${number(worst, 2)}; ` +
    `gradients under ${data.floor} of the largest of their map are compared to that. ` +
    (shown.every((count, k) => count === sizes.units[k]) ? "All units are shown." :
      `Of each layer those ${Math.max(...shown)} units are shown that the most gradient reaches.`) +
    " Equation numbers are those of docs/lstm_backward.md.";
}

radios($("layer"), "layer", data.layers.map((_, k) => [String(k), String(k + 1)]), "0", value => { state.layer = Number(value); showLayer(); });
radios($("loss"), "loss", Object.entries(LOSSES), "all", value => { state.loss = value; showLayer(); });
radios($("norm"), "norm", [["h", "dh"], ["c", "dc"]], "h", value => { state.norm = value; showMemory(); });
$("time").max = T;
$("time").addEventListener("input", event => goTo(Number(event.target.value) - 1));
$("play").addEventListener("click", play);
$("cell-toggle").addEventListener("click", event =>
  openSheet(event.currentTarget.getAttribute("aria-expanded") === "false"));
new ResizeObserver(showMemory).observe($("memory"));
makeSentence();
showAbout();
showMasks();
showLayer();
