// Formulas that are wider than the page scroll with the arrow keys too.
window.MathJax?.startup?.promise?.then(() => {
  for (const formula of document.querySelectorAll("mjx-container[display]")) {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  }
});

// A figure opens alone, where it can be made larger: on a phone its labels are small.
for (const image of document.querySelectorAll(".cell_output img:not(.dlcourse-filmstrip img)")) {
  const link = Object.assign(document.createElement("a"), { href: image.src });
  image.replaceWith(link);
  link.append(image);
}

// To copy, the library moves the focus away; the next Tab goes on from the button all the same.
document.addEventListener("click", ({ target }) => target.closest(".copybtn")?.focus());

// Paper is white.
const page = document.documentElement.dataset;
let theme;
window.addEventListener("beforeprint", () => ([theme, page.theme] = [page.theme, "light"]));
window.addEventListener("afterprint", () => (page.theme = theme));
