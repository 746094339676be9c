// The table of contents marks the section that is read, and what scrolls can be reached with the keyboard.
(() => {
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const sections = [...document.querySelectorAll("section[id]")].filter((section) => links.has(section.id));

  const mark = () => {
    const read = sections.findLast((section) => section.getBoundingClientRect().top < window.innerHeight / 3);
    const current = links.get(read ? read.id : "report");
    for (const link of links.values()) {
      if (link === current) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  const markSoon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  };
  addEventListener("scroll", markSoon, { passive: true });
  addEventListener("resize", markSoon);
  mark();
  const list = document.querySelector(".contents details");
  list.addEventListener("click", (event) => {
    if (event.target.closest("a")) list.open = false;
  });
  list.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !list.open) return;
    list.open = false;
    list.querySelector("summary").focus();
  });

  const reach = (region) => {
    const scrolls = region.scrollWidth > region.clientWidth + 1 || region.scrollHeight > region.clientHeight + 1;
    if (!scrolls) {
      for (const name of ["tabindex", "role", "aria-label"]) region.removeAttribute(name);
      return;
    }
    const named = region.querySelector("caption") ?? region.closest("section, header")?.querySelector("h2, h1");
    region.setAttribute("tabindex", "0");
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", (named?.textContent ?? "").trim().replace(/\s+/g, " ").slice(0, 120) || "scrolls");
  };
  const seen = new ResizeObserver((entries) => {
    for (const entry of entries) reach(entry.target);
  });
  for (const region of document.querySelectorAll(".scroll:not([tabindex]), main pre")) seen.observe(region);
})();
