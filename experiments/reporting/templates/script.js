"use strict";
(() => {
  const table = document.getElementById("claims-table");
  const claims = [...table.tBodies];
  const search = document.getElementById("search");
  const boxes = [...document.querySelectorAll("input[name=verdict]")];
  const status = document.getElementById("shown");

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    let shown = 0;
    for (const claim of claims) {
      const text = claim.textContent.toLowerCase();
      claim.hidden = !wanted.has(claim.dataset.verdict) || !words.every((word) => text.includes(word));
      shown += !claim.hidden;
    }
    status.textContent = `${shown} of ${claims.length} claims shown`;
  }

  const collator = new Intl.Collator("en", { numeric: true });
  function sort(header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = header.dataset.key;
    claims
      .slice()
      .sort((a, b) => (ascending ? 1 : -1) * collator.compare(a.dataset[key], b.dataset[key]))
      .forEach((claim) => table.append(claim));
  }

  function open() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = target && target.closest("tbody")?.querySelector("details");
    if (details) details.open = true;
  }

  search.addEventListener("input", filter);
  boxes.forEach((box) => box.addEventListener("change", filter));
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sort(button.closest("th"));
  });
  window.addEventListener("hashchange", open);
  document.querySelectorAll("[data-needs-script]").forEach((element) => (element.hidden = false));
  filter();
  open();
})();
