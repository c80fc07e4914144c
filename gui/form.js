// The form of the Train tab: what is said at its fields (see gui/forms/marks.py), simple or all options, its sections.
(() => {
  const find = (id) => document.getElementById(id);

  // --- at the fields ---------------------------------------------------------------------------------------------

  let marks = { problems: {}, changed: {} };
  let read = "";

  function mark(block) {
    const name = block.id.slice(4);
    const problem = marks.problems[name] || "";
    const before = marks.changed[name];
    const said = `${problem}\n${before ?? ""}`;
    const isSaid = (block.dataset.said ?? "\n") === said;
    if (isSaid && (said.length === 1 || block.querySelector(":scope > .at-field"))) return;
    block.dataset.said = said;
    block.querySelector(":scope > .at-field")?.remove();
    block.classList.toggle("changed", before !== undefined);
    const field = block.querySelector("input, textarea");
    field?.setAttribute("aria-invalid", String(Boolean(problem)));
    if (said.length === 1) return;
    const place = Object.assign(document.createElement("div"), { className: "at-field" });
    if (problem) {
      const words = Object.assign(document.createElement("p"), { id: `problem-${name}`, textContent: problem });
      words.setAttribute("role", "status");
      field?.setAttribute("aria-describedby", words.id);
      place.append(words);
    }
    if (before !== undefined) {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "small" });
      Object.assign(button, { textContent: `↺ ${before}`, title: `Take this change back: ${before}` });
      button.setAttribute("aria-label", `Take the change of ${name} back to ${before}`);
      button.dataset.takeBack = name;
      place.append(button);
    }
    block.append(place);
  }

  window.rekindleDressing.push(() => {
    const told = document.querySelector("#form-marks [data-marks]")?.dataset.marks;
    if (told === undefined) return;
    if (told !== read) {
      read = told;
      marks = JSON.parse(told);
      const wanted = new Set([...Object.keys(marks.problems), ...Object.keys(marks.changed)]);
      const inside = rekindleOptions.filter((option) => wanted.has(option.name)).flatMap((option) => option.inside);
      for (const one of document.querySelectorAll(".option-advanced")) one.classList.toggle("wanted", inside.includes(one.id));
    }
    for (const { name } of rekindleOptions) {
      const block = find(`opt-${name}`);
      if (block) mark(block);
    }
  });

  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("[data-take-back]")?.dataset.takeBack;
    if (!name) return;
    event.preventDefault();
    find(`opt-${name}`)?.querySelector("input, textarea")?.focus();
    window.rekindleTakeBack?.(name);
  });

  // --- simple, or all options ------------------------------------------------------------------------------------

  const KEPT = "rekindle.options";
  window.rekindleMode = (mode) => {
    document.body.classList.toggle("simple", mode === "simple");
    for (const button of document.querySelectorAll("[data-mode]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
  };
  function kept() {
    try {
      return localStorage.getItem(KEPT) || "all";
    } catch {
      return "all"; // a browser that keeps nothing
    }
  }
  function choose(mode) {
    window.rekindleMode(mode);
    try {
      localStorage.setItem(KEPT, mode);
    } catch {
      // likewise
    }
  }
  document.addEventListener("click", (event) => {
    const mode = event.target.closest?.("[data-mode]")?.dataset.mode;
    if (mode) choose(mode);
  });
  let begun = false;
  window.rekindleDressing.push(() => {
    if (begun || !document.querySelector("[data-mode]")) return;
    begun = true;
    window.rekindleMode(kept());
  });
  window.rekindleShowAll = () => document.body.classList.contains("simple") && choose("all");

  // --- the list of sections --------------------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("#sections a");
    if (!link) return;
    event.preventDefault();
    const section = document.querySelector(link.getAttribute("href"));
    const opener = section?.querySelector("button.label-wrap");
    if (opener && !opener.classList.contains("open")) opener.click();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    section?.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
    opener?.focus({ preventScroll: true });
  });

  // The section that the upper part of the window shows is the current one.
  let resting = 0;
  function follow() {
    resting = 0;
    const list = find("sections");
    if (!list?.offsetParent) return;
    const links = [...list.querySelectorAll("a")];
    const above = links.filter((link) => {
      const section = document.querySelector(link.getAttribute("href"));
      return section && section.getBoundingClientRect().top < innerHeight / 3;
    });
    const current = above[above.length - 1] || links[0];
    for (const link of links) {
      if (link === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
  addEventListener("scroll", () => (resting ||= requestAnimationFrame(follow)), { passive: true, capture: true });
  window.rekindleDressing.push(() => {
    if (!document.querySelector("#sections [aria-current]")) follow();
  });
})();
