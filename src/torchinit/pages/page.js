for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], inOrder = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const text = new Intl.Collator(undefined, {numeric: true});
  // A click sorts upwards, the next one downwards, the third puts the model's own order back.
  table.tHead.addEventListener("click", event => {
    const at = heads.indexOf(event.target.closest("button")?.parentElement);
    if (at < 0) return;
    const next = {ascending: "descending", descending: ""}[heads[at].ariaSort] ?? "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    if (next) heads[at].setAttribute("aria-sort", next);
    const sign = next === "descending" ? -1 : 1, numeric = heads[at].classList.contains("number");
    const compare = (a, b) => {
      const [one, other] = [a.cells[at], b.cells[at]];
      if (!numeric) return sign * text.compare(one.textContent, other.textContent);
      const empty = !("key" in one.dataset) - !("key" in other.dataset);  // they stay at the end
      return empty || sign * (one.dataset.key - other.dataset.key) || 0;
    };
    body.append(...(next ? [...inOrder].sort(compare) : inOrder));
  });
  const field = document.querySelector(`[aria-controls="${table.id}"]`);
  if (!field) continue;
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of inOrder) shown += !(row.hidden = !words.every(word => row.dataset.words.includes(word)));
    field.parentElement.querySelector("output").value = `${shown} of ${inOrder.length} lines`;
  };
  field.parentElement.hidden = false;
  field.addEventListener("input", filter);
  filter();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => each.open = true));
