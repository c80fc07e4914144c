// Search and jumps on the Train tab, the key of an option on hover, edits sent while still typing, downloads.
// rekindleOptions comes from the declarations: [{name, label, help, section, inside: [accordion ids]}].
(() => {
  const options = new Map(rekindleOptions.map((option) => [option.name, option]));
  const find = (id) => document.getElementById(id);

  async function until(test, milliseconds = 5000) {
    const end = Date.now() + milliseconds;
    for (;;) {
      const result = test();
      if (result || Date.now() > end) return result;
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  }

  // --- jumping ---------------------------------------------------------------------------------------------------

  async function jump(name) {
    const option = options.get(name);
    if (!option) return;
    const tab = find("tab-train-button");
    if (tab && tab.getAttribute("aria-selected") !== "true") tab.click();
    if (option.inside.length > 1) window.rekindleShowAll();
    for (const id of option.inside) {
      const opener = await until(() => document.querySelector(`#${id} > button.label-wrap`));
      if (opener && !opener.classList.contains("open")) opener.click();
    }
    const block = await until(() => {
      const found = find(`opt-${name}`);
      return found && found.offsetParent && found;
    });
    if (!block) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    block.scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
    block.querySelector("input, textarea")?.focus({ preventScroll: true });
    block.classList.remove("found");
    void block.offsetWidth; // restarts the animation
    block.classList.add("found");
    setTimeout(() => block.classList.remove("found"), 3000);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-option]");
    if (!link) return;
    event.preventDefault();
    jump(link.dataset.option);
  });

  // --- searching -------------------------------------------------------------------------------------------------

  const MOST = 12;
  let chosen = -1;

  function rank(option, words) {
    const name = option.name.toLowerCase();
    const label = option.label.toLowerCase();
    const rest = `${option.section} ${option.help}`.toLowerCase();
    let sum = 0;
    for (const word of words) {
      if (name === word || label === word) sum += 0;
      else if (name.startsWith(word) || label.startsWith(word)) sum += 1;
      else if (name.includes(word) || label.includes(word)) sum += 2;
      else if (rest.includes(word)) sum += 4;
      else return null;
    }
    return sum;
  }

  function matches(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    return rekindleOptions
      .map((option, place) => ({ option, place, sum: rank(option, words) }))
      .filter((entry) => entry.sum !== null)
      .sort((one, other) => one.sum - other.sum || one.place - other.place)
      .slice(0, MOST)
      .map((entry) => entry.option);
  }

  function add(parent, tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  function show(input) {
    const list = find("option-found");
    const found = matches(input.value);
    list.replaceChildren();
    found.forEach((option, place) => {
      const item = add(list, "li", `${option.section} › ${option.label}`);
      item.id = `option-found-${place}`;
      item.setAttribute("role", "option");
      item.dataset.name = option.name;
      add(item, "code", option.name);
      add(item, "small", option.help);
    });
    if (!found.length && input.value.trim()) {
      const item = add(list, "li", "No option has these words.");
      item.setAttribute("role", "option");
      item.setAttribute("aria-disabled", "true");
    }
    list.hidden = !input.value.trim();
    input.setAttribute("aria-expanded", String(!list.hidden));
    choose(input, found.length ? 0 : -1);
  }

  function choose(input, place) {
    const items = [...find("option-found").children];
    chosen = place;
    items.forEach((item, index) => item.setAttribute("aria-selected", String(index === place)));
    if (place < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", items[place].id);
      items[place].scrollIntoView({ block: "nearest" });
    }
  }

  function close(input) {
    find("option-found").hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function take(input, item) {
    if (!item || !item.dataset.name) return;
    close(input);
    jump(item.dataset.name);
  }

  document.addEventListener("input", (event) => {
    if (event.target.id === "option-search") show(event.target);
  });
  document.addEventListener("focusin", (event) => {
    if (event.target.id === "option-search") show(event.target);
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.id === "option-search") setTimeout(() => close(event.target), 150);
  });
  document.addEventListener("mousedown", (event) => {
    const item = event.target.closest("#option-found li");
    if (!item) return;
    event.preventDefault(); // the search box keeps the focus until the jump takes it
    take(find("option-search"), item);
  });
  document.addEventListener("keydown", (event) => {
    const input = event.target;
    if (input.id !== "option-search") {
      const typing = input.closest?.("input, textarea, select, [contenteditable]");
      const search = find("option-search");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && search && search.offsetParent) {
        event.preventDefault();
        search.focus();
      }
      return;
    }
    const items = [...find("option-found").children].filter((item) => item.dataset.name);
    if (event.key === "Escape") {
      input.value = "";
      close(input);
    } else if (event.key === "Enter") {
      event.preventDefault();
      take(input, items[chosen]);
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && items.length) {
      event.preventDefault();
      choose(input, (chosen + (event.key === "ArrowDown" ? 1 : items.length - 1)) % items.length);
    }
  });

  // --- the form --------------------------------------------------------------------------------------------------

  // What was in the form arrives a moment after its fields. What was pressed or written before that would be put back;
  // so it waits. Gradio runs this script before it makes the first field.
  const LATE = 15000; // ms after which a page whose form does not arrive can be used all the same
  window.rekindleOpened = () => {
    document.body.inert = false;
    document.body.ariaDisabled = null;
  };
  document.body.inert = true;
  document.body.ariaDisabled = "true"; // a script that fills in fields heeds this, and not `inert`
  setTimeout(window.rekindleOpened, LATE);

  document.addEventListener("mouseover", (event) => {
    const block = event.target.closest?.('[id^="opt-"]');
    const option = block && options.get(block.id.slice(4));
    if (option && !block.title) block.title = `TOML: ${option.name}    command line: --${option.name}`;
  });

  // Gradio tells the server of a text when its field is left; a reload while still in it would lose it.
  let pause;
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (!field.closest?.('[id^="opt-"]')) return;
    clearTimeout(pause);
    pause = setTimeout(() => field.dispatchEvent(new FocusEvent("blur")), 700);
  });

  document.addEventListener("click", (event) => {
    const more = event.target.closest?.("#run-more");
    if (!more) return;
    const all = find("run-bar").classList.toggle("all");
    more.setAttribute("aria-expanded", String(all));
    more.textContent = all ? "Less" : "More";
  });

  // Gradio leaves the list of a dropdown open when Tab leaves its field; Escape closes it.
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Tab" || event.target.getAttribute?.("role") !== "listbox") return;
      event.target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    },
    true,
  );

  // What is added to Gradio's own elements, which come and go: functions that see to it after every change of the page.
  window.rekindleDressing = [
    // Gradio names an empty chart or gallery, but gives it no role to carry the name.
    () => document.querySelectorAll(".empty[aria-label]:not([role])").forEach((one) => one.setAttribute("role", "img")),
    // Messages scroll where the screen is narrow (see look.py): so that keys can scroll them, they can have the focus.
    () => {
      const narrow = innerWidth <= 640;
      for (const one of [find("run-notice"), find("form-message")]) {
        if (!one || (one.tabIndex === 0) === narrow) continue;
        if (narrow) one.tabIndex = 0;
        else one.removeAttribute("tabindex");
      }
    },
  ];
  let looking = 0;
  new MutationObserver(() => {
    looking ||= requestAnimationFrame(() => {
      looking = 0;
      for (const dress of window.rekindleDressing) dress();
    });
  }).observe(document, { childList: true, subtree: true });

  window.rekindleDownload = (preset) => {
    if (!preset || !preset.text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([preset.text], { type: "application/toml" }));
    link.download = preset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
})();
