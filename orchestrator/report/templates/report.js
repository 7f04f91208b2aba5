"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 18 + box.height < innerHeight ? y + 18 : Math.max(4, y - box.height - 10)) + "px";
  };
  const hide = () => { tip.hidden = true; };

  // The names of lines and marks are their titles. This script shows them, so the browser must not do so as well.
  const take = (element) => {
    const title = element.querySelector(":scope > title");
    const text = title ? title.textContent : "";
    if (title) title.remove();
    return text;
  };

  const nearest = (list, value) =>
    list.reduce((best, one, index) => (Math.abs(one - value) < Math.abs(list[best] - value) ? index : best), 0);
  const numbers = (text) => text.split(" ").map(Number);

  for (const svg of document.querySelectorAll("svg.chart")) {
    svg.setAttribute("aria-label", take(svg));
    for (const mark of svg.querySelectorAll(".mark, .cell")) {
      const text = take(mark);
      mark.addEventListener("pointermove", (event) => show(text, event.clientX, event.clientY));
      mark.addEventListener("pointerleave", hide);
    }
    if (svg.querySelector(".line, .run")) follow(svg);
  }

  function follow(svg) {
    const [left, right, bottom, top] = numbers(svg.dataset.box);
    const [first, last, low, high] = numbers(svg.dataset.range);
    const isLog = svg.hasAttribute("data-log"), log = (x) => (isLog ? Math.log(x) : x);
    const across = (x) => left + ((log(x) - log(first)) / (log(last) - log(first))) * (right - left);
    const up = (y) => bottom + ((y - low) / (high - low)) * (top - bottom);
    let known = "";  // a curve states its x once, with its first line
    const lines = [...svg.querySelectorAll(".line, .run")].map((group) => {
      known = group.dataset.x || known;
      const x = known.split(" ");
      return { group, name: take(group), isRun: group.matches(".run"), x, at: x.map(across), y: group.dataset.y.split(" ") };
    });
    const all = [...new Set(lines.flatMap((line) => line.at))].sort((a, b) => a - b);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", bottom);
    svg.append(cursor);
    let place = all.length - 1;
    const clear = () => {
      hide();
      cursor.setAttribute("visibility", "hidden");
      for (const line of lines) line.group.classList.remove("on");
    };
    const describe = (x, y, clientX, clientY) => {
      const text = [];
      let closest = null;
      for (const line of lines) {
        line.group.classList.remove("on");
        const index = nearest(line.at, x);
        if (Math.abs(line.at[index] - x) > 3 || line.y[index] === "-") continue;
        if (!text.length) text.push(svg.dataset.name + " " + line.x[index]);
        if (!line.isRun) { text.push(line.name + ": " + line.y[index] + " %"); continue; }
        const far = Math.abs(up(line.y[index]) - y);
        if (!closest || far < closest.far) closest = { far, line, index };
      }
      if (closest && closest.far < 7) {
        closest.line.group.classList.add("on");
        text.push(closest.line.name + ": " + closest.line.y[closest.index] + " %");
      }
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
      if (text.length) show(text.join("\n"), clientX, clientY);
    };
    const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const move = (event) => {
      const box = svg.getBoundingClientRect(), one = scale();
      place = nearest(all, (event.clientX - box.left) / one);
      describe(all[place], (event.clientY - box.top) / one, event.clientX, event.clientY);
    };
    const step = (by) => {
      place = Math.max(0, Math.min(all.length - 1, place + by));
      const box = svg.getBoundingClientRect();
      describe(all[place], -100, box.left + all[place] * scale(), box.top + 20);
    };
    clear();
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) step(0); });
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); step(by); }
      if (event.key === "Escape") clear();
    });
  }

  // Long tables get a field that leaves only the rows with every word in it.
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 12) continue;
    const field = document.createElement("input");
    field.type = "search";
    field.className = "filter";
    field.placeholder = "Filter rows";
    field.setAttribute("aria-label", "Filter rows");
    table.parentNode.before(field);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of table.tBodies[0].rows)
        row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
  }

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compare(value(a, column), value(b, column)) * (down ? -1 : 1));
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
