"use strict";
(() => {
  const root = document.documentElement;
  const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a file may have no storage */ } };
  const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

  const theme = remembered("study-report-theme");
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    remember("study-report-theme", root.dataset.theme);
  });

  const press = (group, button) => {
    for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
  };
  for (const group of document.querySelectorAll("[data-switch=stage]")) {
    const show = (button) => {
      press(group, button);
      for (const panel of document.querySelectorAll(".stage-panel")) {
        panel.classList.toggle("off", panel.dataset.stage !== button.dataset.stage);
      }
    };
    for (const button of group.querySelectorAll("button")) button.addEventListener("click", () => show(button));
    const pressed = group.querySelector("[aria-pressed=true]");
    if (pressed) show(pressed);
  }
  for (const group of document.querySelectorAll("[data-switch=show]")) {
    for (const button of group.querySelectorAll("button")) {
      button.addEventListener("click", () => { press(group, button); root.dataset.show = button.dataset.show; });
    }
  }

  // Numbers sort by data-d where differences are shown and there are any, else by data-v; what has none comes last.
  const keyOf = (cell) => {
    const number = root.dataset.show === "delta" && cell.dataset.d !== undefined ? cell.dataset.d : cell.dataset.v;
    return number === undefined ? null : Number(number);
  };
  const compare = (first, second, sign) => {
    if (first.key === null && second.key === null) return sign * first.text.localeCompare(second.text, "en", { numeric: true });
    if (first.key === null || second.key === null) return first.key === null ? 1 : -1;
    return sign * (first.key - second.key);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const isNumber = heading.classList.contains("num");
        const now = heading.getAttribute("aria-sort");
        const first = isNumber && (!heading.classList.contains("low") || root.dataset.show === "delta") ? "descending" : "ascending";
        const next = now === "descending" ? "ascending" : now === "ascending" ? "descending" : first;
        for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", next);
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => {
          const cell = row.cells[Math.min(column, row.cells.length - 1)];
          return { row, key: keyOf(cell), text: cell.textContent.trim() };
        });
        rows.sort((first, second) => compare(first, second, next === "ascending" ? 1 : -1));
        body.append(...rows.map((one) => one.row));
      });
    });
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      for (const line of button.closest(".curve-group").querySelectorAll(`g[data-series="${button.dataset.series}"]`)) {
        line.classList.toggle("off", !isShown);
      }
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
