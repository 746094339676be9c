"use strict";
// The page can be read without this script: it adds what is under the pointer and sorting.
(() => {
  const curves = JSON.parse(document.getElementById("curve-data")?.textContent ?? "[]");
  const tip = document.getElementById("tip");

  const track = (trial) => {
    for (const chart of document.querySelectorAll(".chart")) chart.classList.toggle("tracking", trial !== null);
    for (const mark of document.querySelectorAll(".curve, .trials tbody tr")) {
      mark.classList.toggle("tracked", trial !== null && mark.dataset.trial === String(trial));
    }
  };

  const placed = (chart) => {
    const { left, right, top, bottom, low, high, epochs } = Object.fromEntries(Object.entries(chart.dataset).map(([key, text]) => [key, Number(text)]));
    return {
      x: (epoch) => left + ((right - left) * (epoch - 0.5)) / epochs,
      y: (value) => bottom - ((bottom - top) * (value - low)) / (high - low),
    };
  };

  const nearest = (chart, event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const { x, y } = placed(chart);
    let found = null;
    for (const curve of curves) {
      for (const [epoch, value] of curve.points) {
        const distance = Math.hypot(x(epoch) - at.x, y(value) - at.y);
        if (found === null || distance < found.distance) found = { curve, epoch, value, stage: epoch <= curve.pretrained ? "pretrain" : curve.then, distance, x: x(epoch), y: y(value) };
      }
    }
    return found;
  };

  const showTip = (event, lines) => {
    tip.replaceChildren(...lines.flatMap((line) => [document.createTextNode(line), document.createElement("br")]).slice(0, -1));
    tip.hidden = false;
    const beside = event.clientX + 16 + tip.offsetWidth > window.innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
  };

  const hide = (chart) => {
    tip.hidden = true;
    track(null);
    for (const cursor of chart.querySelectorAll(".cursor")) cursor.setAttribute("visibility", "hidden");
  };

  for (const chart of document.querySelectorAll(".chart")) {
    const [line, ring] = chart.querySelectorAll(".cursor");
    for (const title of chart.querySelectorAll("title")) title.remove(); // else the browser's own tip covers ours
    chart.addEventListener("pointermove", (event) => {
      const found = nearest(chart, event);
      if (found === null) return;
      track(found.curve.trial);
      for (const end of ["x1", "x2"]) line.setAttribute(end, found.x);
      ring.setAttribute("cx", found.x);
      ring.setAttribute("cy", found.y);
      for (const cursor of [line, ring]) cursor.setAttribute("visibility", "visible");
      showTip(event, [`Trial ${found.curve.trial} · ${found.curve.outcome}`, `epoch ${found.epoch}${found.stage ? ` (${found.stage})` : ""}: ${found.value.toFixed(4)}`]);
    });
    chart.addEventListener("pointerleave", () => hide(chart));
  }
  for (const mark of document.querySelectorAll(".trials tbody tr, .strip circle")) {
    mark.addEventListener("pointerenter", () => track(Number(mark.dataset.trial)));
    mark.addEventListener("pointerleave", () => track(null));
  }

  const sortBy = (table, heading, index) => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[index].dataset.value;
    const numeric = heading.dataset.sort === "number";
    const compare = (a, b) => {
      const [first, second] = [Number(a), Number(b)];
      return numeric && !Number.isNaN(first) && !Number.isNaN(second) ? first - second : a.localeCompare(b);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // nothing comes last either way
      return compare(key(a), key(b)) * (descending ? -1 : 1);
    });
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      if (!heading.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sortBy(table, heading, index));
      heading.replaceChildren(button);
    });
  }
})();
