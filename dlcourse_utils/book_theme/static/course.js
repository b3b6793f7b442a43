// Formulas that are wider than the page scroll with the arrow keys too.
window.MathJax?.startup?.promise?.then(() => {
  for (const formula of document.querySelectorAll("mjx-container[display]")) {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  }
});
