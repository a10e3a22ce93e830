"use strict";
// The equations of the plain and of the layer-normalised cell, with their numbers in docs/lstm_backward.md and the
// values of one step t and unit u filled in. page.js shows them; `data` and the small tools are its.

const normalizes = () => data.cell === "layer_norm";
// Of an equation that both cells have under two numbers.
const numbered = (plain, normalized) => (normalizes() ? normalized : plain);

// What a square's card shows the code of: forward, backward.
const EQUATIONS = {
  plain: { i: [[1, 2], [8]], f: [[1, 2], [8]], g: [[1, 3], [8]], o: [[1, 2], [9]], c: [[4], [10, 7]], h: [[5], [11, 6]] },
  layer_norm: {
    i: [[50, 51, 2], [56, 8, 59, 42, 43]], f: [[50, 51, 2], [56, 8, 59, 42, 43]], g: [[50, 51, 3], [56, 8, 59, 42, 43]],
    o: [[50, 51, 2], [9, 59, 42, 43]], c: [[52, 53, 40], [57, 7, 55, 42, 43]], h: [[5], [60, 6]],
  },
};

// The names of the gradients that a square's card proves: before a normalisation is another number than after it.
function gradientsOf(map) {
  const after = gradientName(map);
  if (!normalizes() || map === "h") return [after];
  return [after, map === "c" ? "s" : `a_${map}`];
}

// A line may break before a / and a =, not after them, and not within 1 − x.
const unbroken = text => text.replaceAll("/ ", "/\u00a0").replaceAll("(1 − ", "(1\u00a0−\u00a0");

function equation(no, formula, filled, result, why = null) {
  return el("div", { class: "equation" }, el("span", { class: "number" }, `(${no})`), math(unbroken(formula)),
    el("span", { class: "filled" }, unbroken(filled), " =\u00a0", el("span", { class: "result" }, number(result))),
    why && el("span", { class: "why" }, why));
}

// A sum of numbers with their signs between them.
function sum(...terms) {
  return terms.map((x, k) => (k ? (x < 0 ? " − " : " + ") + number(Math.abs(x)) : number(x))).join("");
}

const normOf = map => layer().norm[map === "c" ? "s" : map];

function normalizing(no, map, from, to, t, u, x, result) {
  const { gain, shift, mean, std } = normOf(map), p = inParentheses;
  const one = map === "f" ? " + 1" : "", beta = shift[u] < 0 ? ` − ${number(-shift[u])}` : ` + ${number(shift[u])}`;
  return equation(no, `${to} = γ (${from} − μ) / σ + β${one}`,
    `${number(gain[u])} · (${number(x)} − ${p(mean[t])}) / ${number(std[t])}${beta}${one}`, result,
    `μ and σ: mean and deviation of all units at this step${map === "f" ? "; the 1 lets the cell remember at first" : ""}`);
}

function undoing(no, map, from, to, t, u, dy, result) {
  const { gain, n, std, back } = normOf(map), means = back[state.loss], p = inParentheses;
  return equation(no, `${to} = (u − mean(u) − n mean(u\u00a0n)) / σ, u = γ ${from}`,
    `(${number(gain[u])} · ${p(dy)} − ${p(means.u[t])} − ${p(n[t][u])} · ${p(means.un[t])}) / ${number(std[t])}`, result,
    `n: the normalised ${map === "c" ? "cell" : "gate"}; means over all units`);
}

function forwardEquations(map, t, u) {
  const v = name => layer().values[name][t][u], before = t ? layer().values.c[t - 1][u] : 0;
  const [i, f, g, o] = GATES.map(v), cell = normalizes() ? "s" : "c";
  if (map === "c") {
    const kept = equation(numbered(4, 52), `${cell}_t = f_t c_{t−1} + i_t g_t`,
      `${number(f)} · ${inParentheses(before)} + ${number(i)} · ${inParentheses(g)}`, v(cell),
      `keeps ${percent(f)} of the old cell, writes ${percent(i)} of the candidate`);
    return normalizes() ? [kept, normalizing(53, map, "s_t", "c_t", t, u, v("s"), v("c"))] : [kept];
  }
  if (map === "h") return [equation(5, "h_t = o_t tanh(c_t)", `${number(o)} · tanh(${number(v("c"))})`, v("h"),
    `shows ${percent(o)} of the cell`)];
  const squash = map === "g" ? "tanh" : "σ", products = "x_t W_{ih}^⊤ + h_{t−1} W_{hh}^⊤";
  const z = normalizes()
    ? [equation(50, `a_t^${map} = ${products}`, sum(v(`x_${map}`), v(`h_${map}`)), v(`a_${map}`), "from the word, from the last output"),
      normalizing(51, map, `a_t^${map}`, `z_t^${map}`, t, u, v(`a_${map}`), v(`z_${map}`))]
    : [equation(1, `z_t^${map} = ${products} + b`,
      sum(v(`x_${map}`), v(`h_${map}`), layer().bias[map][u]), v(`z_${map}`), "from the word, from the last output, bias")];
  return [...z, equation(map === "g" ? 3 : 2, `${map}_t = ${squash}(z_t^${map})`, `${squash}(${number(v(`z_${map}`))})`, v(map),
    { i: `writes ${percent(i)} of the candidate`, f: `keeps ${percent(f)} of the cell`, o: `shows ${percent(o)} of the cell`,
      g: "what could be written into the cell" }[map])];
}

function backwardEquations(map, t, u) {
  if (map === "h") return backwardOutput(t, u);
  if (map === "c") return backwardCell(t, u);
  const v = name => layer().values[name][t][u], d = name => lossGradients()[name][t][u];
  const before = t ? layer().values.c[t - 1][u] : 0, p = inParentheses;
  const [i, f, g, o] = GATES.map(v), cell = normalizes() ? "s" : "c", dc = d(cell), no = map === "o" ? 9 : numbered(8, 56);
  const [formula, filled] = {
    i: [`d${cell}_t g_t i_t (1 − i_t)`, `${number(dc)} · ${p(g)} · ${number(i)} · (1 − ${number(i)})`],
    f: [`d${cell}_t c_{t−1} f_t (1 − f_t)`, `${number(dc)} · ${p(before)} · ${number(f)} · (1 − ${number(f)})`],
    g: [`d${cell}_t i_t (1 − g_t²)`, `${number(dc)} · ${number(i)} · (1 − ${p(g)}²)`],
    o: ["dh_t tanh(c_t) o_t (1 − o_t)", `${number(d("h"))} · tanh(${number(v("c"))}) · ${number(o)} · (1 − ${number(o)})`],
  }[map];
  const nothing = "the cell before the first step is zero: nothing to forget, nothing to learn";
  const dz = equation(no, `dz_t^${map} = ${formula}`, filled, d(`z_${map}`), map === "f" && !t ? nothing : null);
  return normalizes() ? [dz, undoing(59, map, `dz_t^${map}`, `da_t^${map}`, t, u, d(`z_${map}`), d(`a_${map}`))] : [dz];
}

const NOBODY = "nobody uses the state after the last step";

function backwardCell(t, u) {
  const d = name => lossGradients()[name][t][u], o = layer().values.o[t][u], c = layer().values.c[t][u];
  const no = numbered(10, 57), cell = normalizes() ? "s" : "c";
  const later = t === T - 1 ? equation(no, "dc_t^← = 0", NOBODY, 0) : equation(no, `dc_t^← = d${cell}_{t+1} f_{t+1}`,
    `${number(lossGradients()[cell][t + 1][u])} · ${number(layer().values.f[t + 1][u])}`, d("c_on"), "what the next step sends back along the cell");
  const dc = equation(7, "dc_t = dc_t^← + dh_t o_t (1 − tanh²c_t)",
    `${number(d("c_on"))} + ${inParentheses(d("h"))} · ${number(o)} · (1 − tanh²(${number(c)}))`, d("c"));
  return normalizes() ? [later, dc, undoing(55, "c", "dc_t", "ds_t", t, u, d("c"), d("s"))] : [later, dc];
}

function backwardOutput(t, u) {
  const d = name => lossGradients()[name][t][u], no = numbered(11, 60), sent = normalizes() ? "da" : "dz";
  const above = state.layer === data.layers.length - 1 ? "the loss" : "the layer above";
  const later = t === T - 1 ? equation(no, "dh_t^← = 0", NOBODY, 0) : equation(no, `dh_t^← = ${sent}_{t+1} W_{hh}`,
    sum(...GATES.map(gate => d(`through_${gate}`))), d("h_on"), "what the next step sends back through its i, f, g, o");
  return [later, equation(6, "dh_t = dy_t + dh_t^←", sum(d("y"), d("h_on")), d("h"), `from ${above}, from the next step`)];
}

// One step of the backward pass, equation by equation: [number, equation, lengths over all units].
function ledgerOf(t) {
  const norms = layer().norms[state.loss], n = name => number(norms[name][t], 3);
  const last = t === T - 1 ? ` (0: ${NOBODY})` : "", cell = normalizes() ? "s" : "c";
  const above = state.layer === data.layers.length - 1 ? "the loss" : "the layer above";
  const onward = name => (t ? `${number(norms[name][t - 1], 3)} goes on to step ${t}` : "ends here: at the first step");
  const undone = (to, from) => `${to} = (u − mean(u) − n ∘ mean(u\u00a0∘\u00a0n)) / σ, u = γ ∘ ${from}`;
  return [
    [6, "dh_t = dy_t + dh_t^←", `‖dh‖ ${n("h")}: from ${above} ${n("y")}, from the next step ${n("h_on")}${last}`],
    [7, "dc_t = dc_t^← + dh_t ∘ o_t ∘ (1 − tanh²c_t)", `‖dc‖ ${n("c")}: of it from the next step ${n("c_on")}`],
    normalizes() && [55, undone("ds_t", "dc_t"), `‖ds‖ ${n("s")}: what the cell was before its normalisation`],
    [numbered(8, 56), `dz_t^f = d${cell}_t ∘ c_{t−1} ∘ f_t ∘ (1 − f_t), i and g likewise`,
      `‖dz‖ i ${n("z_i")}, f ${n("z_f")}, g ${n("z_g")}`],
    [9, "dz_t^o = dh_t ∘ tanh(c_t) ∘ o_t ∘ (1 − o_t)", `‖dz‖ o ${n("z_o")}`],
    [numbered(10, 57), `dc_{t−1}^← = d${cell}_t ∘ f_t`, onward("c_on")],
    normalizes() && [59, `${undone("da_t^f", "dz_t^f")}, i, g and o likewise`,
      `‖da‖ ${GATES.map(gate => `${gate} ${n(`a_${gate}`)}`).join(", ")}`],
    [numbered(11, 60), `dh_{t−1}^← = ${normalizes() ? "da" : "dz"}_t W_{hh}`, onward("h_on")],
  ].filter(Boolean);
}
