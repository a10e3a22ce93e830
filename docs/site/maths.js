// Every formula on the page, by the KaTeX beside this file.
function renderMaths() {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    const displayMode = text.startsWith("\\[");
    katex.render(text.replace(/^\\[[(]|\\[\])]$/g, ""), element, { displayMode, throwOnError: false });
  }
}
document.addEventListener("DOMContentLoaded", renderMaths);
