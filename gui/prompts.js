// Sample prompts as rows: what a line says in kohya's notation (a fox --n blurry --w 512) has a field each.
(() => {
  const FIELDS = "#opt-sample_prompts, #sampling-prompts";
  const PARTS = [
    ["prompt", "Prompt", "text"],
    ["n", "Negative prompt", "text"],
    ["w", "Width", "number"],
    ["h", "Height", "number"],
    ["d", "Seed", "number"],
    ["s", "Steps", "number"],
    ["l", "Scale", "number"],
  ];
  let field = null; // the block that the dialog is open for

  // A line as fields; what has none here stays as it is, in `rest`.
  function parsed(line) {
    const [prompt, ...told] = ` ${line.trim()} `.split(/\s--([a-zA-Z]+)\s+/);
    const row = { prompt: prompt.trim(), rest: "" };
    for (let place = 0; place + 1 < told.length; place += 2) {
      const [letter, value] = [told[place], told[place + 1].trim()];
      if (PARTS.some(([name]) => name === letter)) row[letter] = value;
      else row.rest += ` --${letter} ${value}`;
    }
    return row;
  }

  function written(row) {
    const told = PARTS.slice(1).filter(([name]) => row[name]).map(([name]) => ` --${name} ${row[name]}`);
    return `${row.prompt}${told.join("")}${row.rest}`;
  }

  const isLine = (line) => line.trim() && !line.trim().startsWith("#");

  window.rekindleDressing.push(() => {
    for (const block of document.querySelectorAll(FIELDS)) {
      if (block.querySelector(":scope > .as-rows")) continue;
      const button = Object.assign(document.createElement("button"), { type: "button", className: "small as-rows" });
      button.textContent = "Edit as rows";
      block.append(button);
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.as-rows");
    if (!button) return;
    event.preventDefault();
    field = button.closest(FIELDS);
    open(field.querySelector("textarea").value);
  });

  function dialog() {
    const made = document.getElementById("prompt-rows");
    if (made) return made;
    const box = Object.assign(document.createElement("dialog"), { id: "prompt-rows", className: "choosing" });
    box.setAttribute("aria-labelledby", "prompt-rows-title");
    box.innerHTML =
      '<h2 id="prompt-rows-title">Sample prompts</h2><div class="rows"></div>' +
      '<footer><p role="status"></p><button type="button" class="small" data-do="add">Add a prompt</button>' +
      '<button type="button" class="small" data-do="cancel">Cancel</button>' +
      '<button type="button" class="small" data-do="take" aria-pressed="true">Use these prompts</button></footer>';
    (document.querySelector(".gradio-container") || document.body).append(box); // whose colours it has
    box.addEventListener("click", (event) => {
      const action = event.target.closest("button")?.dataset.do;
      if (event.target === box || action === "cancel") box.close();
      else if (action === "add") add(parsed("")).querySelector("input").focus();
      else if (action === "remove") event.target.closest("fieldset").remove();
      else if (action === "take") take();
    });
    box.addEventListener("close", () => field?.querySelector(".as-rows")?.focus());
    return box;
  }

  function add(row) {
    const group = document.createElement("fieldset");
    group.append(Object.assign(document.createElement("legend"), { textContent: "Prompt" }));
    group.dataset.rest = row.rest;
    for (const [name, words, type] of PARTS) {
      const label = Object.assign(document.createElement("label"), { className: type, textContent: words });
      const input = Object.assign(document.createElement("input"), { type, value: row[name] || "" });
      if (type === "number") input.step = name === "l" ? "any" : "1";
      input.dataset.part = name;
      label.append(input);
      group.append(label);
    }
    const remove = Object.assign(document.createElement("button"), { type: "button", className: "small" });
    remove.textContent = "Remove";
    remove.dataset.do = "remove";
    group.append(remove);
    dialog().querySelector(".rows").append(group);
    return group;
  }

  function open(text) {
    const box = dialog();
    const isFile = /^\S[^\n]*\.(txt|json|toml)$/.test(text.trim());
    box.querySelector(".rows").replaceChildren();
    box.querySelector("footer p").textContent = isFile ? `The prompts are those of the file ${text.trim()}.` : "";
    box.querySelectorAll('[data-do="add"], [data-do="take"]').forEach((button) => (button.disabled = isFile));
    const lines = isFile ? [] : text.split("\n").filter(isLine);
    for (const line of lines.length || isFile ? lines : [""]) add(parsed(line));
    box.showModal();
  }

  // Comments and what else is no prompt stay, above the prompts.
  function take() {
    const box = field.querySelector("textarea");
    const others = box.value.split("\n").filter((line) => line.trim() && !isLine(line));
    const rows = [...dialog().querySelectorAll("fieldset")].map((group) => ({
      rest: group.dataset.rest,
      ...Object.fromEntries([...group.querySelectorAll("input")].map((input) => [input.dataset.part, input.value.trim()])),
    }));
    const value = [...others, ...rows.map(written).filter((line) => line.trim())].join("\n");
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(box, value);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    dialog().close();
    setTimeout(() => box.dispatchEvent(new FocusEvent("blur")), 50); // Gradio tells the server when a field is left
  }
})();
