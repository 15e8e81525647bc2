"use strict";
// Sliders: the handle of a pair moves the edge between its clean and its attacked side.
for (const pair of document.querySelectorAll(".pair")) {
  const slider = pair.querySelector("input[type=range]");
  const stage = pair.querySelector(".stage");
  const show = () => stage.style.setProperty("--at", slider.value + "%");
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}
// Tables: a button in a column's head sorts by it; numbers first from the largest, then texts.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const value = (row) => row.cells[column].dataset.value;
      const numeric = rows.some((row) => value(row) !== undefined);
      const before = head.getAttribute("aria-sort");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = before === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a !== undefined && b !== undefined) return sign * (Number(a) - Number(b));
        if (a !== undefined || b !== undefined) return a === undefined ? 1 : -1;
        const [text, otherText] = [one, other].map((row) => row.cells[column].textContent);
        return sign * text.localeCompare(otherText, "en", { numeric: true });
      });
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      table.tBodies[0].append(...rows);
    });
  });
}
