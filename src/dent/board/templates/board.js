"use strict";
(() => {
  const form = document.querySelector(".controls"), table = document.querySelector("table.board");
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const status = document.getElementById("shown");
  form.hidden = false;
  const value = (row, column) => row.cells[column].dataset.sort;
  const compare = (column, numeric, sign) => (a, b) => {
    const left = value(a, column), right = value(b, column);
    if (left === "" || right === "") return (left === "") - (right === "") || a.dataset.order - b.dataset.order;
    const bound = (row) => row.cells[column].dataset.bound !== undefined;
    if (bound(a) !== bound(b)) return bound(a) - bound(b);
    const order = numeric ? left - right : left.localeCompare(right);
    return sign * order || a.dataset.order - b.dataset.order;
  };
  const sort = (column, direction) => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (column === null) {
      rows.sort((a, b) => a.dataset.order - b.dataset.order);
    } else {
      heads[column].setAttribute("aria-sort", direction);
      const numeric = heads[column].dataset.kind === "number";
      rows.sort(compare(column, numeric, direction === "ascending" ? 1 : -1));
    }
    body.append(...rows);
    form.elements.sort.value = column === null ? "" : String(column);
  };
  const first = (column) => heads[column].dataset.kind === "number" ? "descending" : "ascending";
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    sort(column, now === null ? first(column) : now === "ascending" ? "descending" : "ascending");
  }));
  form.elements.sort.addEventListener("change", (event) => {
    const column = event.target.value === "" ? null : Number(event.target.value);
    sort(column, column === null ? "" : first(column));
  });
  const filter = () => {
    const track = form.elements.track.value;
    for (const part of document.querySelectorAll("[data-track]"))
      part.classList.toggle("away", track !== "" && part.dataset.track !== track);
    const shown = rows.filter((row) => !row.classList.contains("away")).length;
    status.textContent = `${shown} of ${rows.length} rows are shown.`;
  };
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
