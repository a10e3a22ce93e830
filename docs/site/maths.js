// Every formula on the page, by the KaTeX beside this file.

// On a narrow screen a display is set row by row and inline, where KaTeX breaks lines at = + − ∘; wide ones as written.
const narrow = matchMedia("(max-width: 44.98em)");

function renderMaths() {
  for (const element of document.querySelectorAll(".arithmatex")) {
    element.dataset.tex ??= element.textContent.trim();
    const text = element.dataset.tex, tex = text.replace(/^\\[[(]|\\[\])]$/g, "");
    if (!text.startsWith("\\[")) katex.render(tex, element, { throwOnError: false });
    else if (narrow.matches) element.replaceChildren(...rowsOf(tex).map(narrowRow));
    else katex.render(tex, element, { displayMode: true, throwOnError: false });
  }
  if (narrow.matches) document.querySelectorAll(".maths-row").forEach(fit);
}

// The rows of an align, or all of a formula as one: [what is computed, its shape or "", its number or ""].
function rowsOf(tex) {
  const body = tex.trim().replace(/^\\begin\{align\*\}([^]*)\\end\{align\*\}$/, "$1");
  return splitOutside(body, "\\\\").map(row => {
    const number = row.match(/\\tag\{(\d+)\}/)?.[1] ?? "";
    const [formula, shape = ""] = splitOutside(row.replace(/\\tag\{\d+\}/, ""), "&&");
    return [splitOutside(formula, "&").join(""), shape, number];
  });
}

// Split a text at a sign, but not where it stands within braces or a \begin … \end.
function splitOutside(text, sign) {
  const parts = [""];
  let depth = 0;
  for (const [token] of text.matchAll(/\\[a-zA-Z]+|\\\\|\\[^a-zA-Z]|&&|[^]/g)) {
    if (token === "{" || token === "\\begin") depth += 1;
    if (token === "}" || token === "\\end") depth -= 1;
    if (depth === 0 && token === sign) parts.push("");
    else parts[parts.length - 1] += token;
  }
  return parts;
}

function narrowRow([formula, shape, number]) {
  const row = document.createElement("div"), said = row.appendChild(document.createElement("div"));
  row.className = "maths-row";
  const breakable = formula.replace(/,\\ /g, "$& \\allowbreak ").replace(/\\(left|right)(?![a-z])/g, (_, side) => `\\big${side[0]}`);
  const lines = splitOutside(breakable.replace(/\\qquad/g, "\\quad"), "\\quad").map(line => `\\displaystyle ${line}`);
  for (const tex of [...lines, shape]) {
    const part = said.appendChild(document.createElement("div"));
    part.className = tex === shape ? "shape" : "formula";
    katex.render(tex, part, { throwOnError: false });
  }
  row.append(number && `(${number})`);
  return row;
}

// What cannot be broken, such as cases, is made smaller.
function fit(row) {
  const widest = Math.max(...[...row.querySelectorAll(".base")].map(base => base.offsetWidth));
  const room = row.querySelector(".formula").clientWidth;
  if (widest > room) row.style.setProperty("--size", Math.max(0.65, room / widest));
}

document.addEventListener("DOMContentLoaded", renderMaths);
narrow.addEventListener("change", renderMaths);
