// Folders and files of the server, to choose a path from: a button at every field that names one, and a dialog.
// The server (/browse) says what there is, and only inside the folders that its owner named.
(() => {
  const FIELDS = ".names-a-folder, .names-a-path";
  let field = null; // the block that the dialog is open for
  let shown = null; // the listing in it

  // --- the buttons -----------------------------------------------------------------------------------------------

  window.rekindleDressing.push(() => {
    for (const block of document.querySelectorAll(FIELDS)) {
      if (block.querySelector(":scope > .browse")) continue;
      const button = Object.assign(document.createElement("button"), { type: "button", className: "small browse" });
      button.textContent = "Browse";
      const name = block.querySelector('[data-testid="block-info"]')?.textContent.trim();
      button.setAttribute("aria-label", `Browse for ${name || "a path"}`);
      block.append(button);
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.browse");
    if (!button) return;
    event.preventDefault();
    field = button.closest(FIELDS);
    const lines = input().value.trim().split("\n");
    open(lines[lines.length - 1]);
  });

  const input = () => field.querySelector("textarea, input");
  const wantsFolder = () => field.classList.contains("names-a-folder");

  // --- the dialog ------------------------------------------------------------------------------------------------

  function dialog() {
    const made = document.getElementById("browser");
    if (made) return made;
    const box = Object.assign(document.createElement("dialog"), { id: "browser", className: "choosing" });
    box.setAttribute("aria-labelledby", "browser-title");
    box.innerHTML =
      '<h2 id="browser-title"></h2><nav class="roots" aria-label="Where to look"></nav>' +
      '<nav class="way" aria-label="Folder"></nav><input type="search" aria-label="Filter by name" placeholder="Filter">' +
      '<ul aria-label="Folders and files" tabindex="-1"></ul>' +
      '<footer><p role="status"></p><button type="button" class="small" data-do="cancel">Cancel</button>' +
      '<button type="button" class="small" data-do="take" aria-pressed="true">Choose this folder</button></footer>';
    (document.querySelector(".gradio-container") || document.body).append(box); // whose colours it has
    box.querySelector("input").addEventListener("input", list);
    box.addEventListener("click", (event) => {
      const { path, text, do: action } = event.target.closest("button")?.dataset || {};
      if (event.target === box || action === "cancel") box.close();
      else if (action === "take") take(shown.here.text);
      else if (text !== undefined) take(text);
      else if (path !== undefined) open(path);
    });
    box.addEventListener("keydown", move);
    box.addEventListener("close", () => field?.querySelector(".browse")?.focus());
    return box;
  }

  async function open(path) {
    const box = dialog();
    const told = box.querySelector("footer p");
    let answer;
    try {
      answer = await (await fetch(`browse?${new URLSearchParams({ path })}`)).json();
    } catch {
      answer = { refused: "The server does not answer." };
    }
    box.querySelector("h2").textContent = wantsFolder() ? "Choose a folder" : "Choose a file or a folder";
    if (!box.open) {
      shown = null;
      box.showModal();
    }
    if (answer.refused) {
      told.textContent = answer.refused;
      if (!shown) list();
      return;
    }
    shown = answer;
    told.textContent = answer.note || (answer.more ? `${answer.more} more are not shown: filter, or type the path.` : "");
    box.querySelector("input").value = "";
    ways(box.querySelector(".way"), answer.above, answer.here.path);
    ways(box.querySelector(".roots"), answer.roots.length > 1 ? answer.roots : [], answer.above[0].path, "path");
    list();
    box.querySelector("ul button")?.focus();
  }

  function ways(nav, entries, current, words = "name") {
    nav.replaceChildren(
      ...entries.flatMap((entry, place) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: entry[words] });
        button.dataset.path = entry.path;
        if (entry.path === current) button.setAttribute("aria-current", "true");
        return place && words === "name" ? ["/", button] : [button];
      }),
    );
  }

  function size(bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let place = 0;
    while (bytes >= 1000 && place < units.length - 1) [bytes, place] = [bytes / 1000, place + 1];
    return `${bytes < 10 && place ? bytes.toFixed(1) : Math.round(bytes)} ${units[place]}`;
  }

  function list() {
    const box = dialog();
    const wanted = box.querySelector("input").value.toLowerCase();
    const fits = (entry) => entry.name.toLowerCase().includes(wanted);
    const rows = (shown ? [...shown.folders, ...shown.files] : []).filter(fits).map((entry) => {
      const isFile = entry.bytes !== null;
      const row = document.createElement(isFile && wantsFolder() ? "span" : "button");
      if (row.tagName === "BUTTON") {
        row.type = "button";
        row.dataset[isFile ? "text" : "path"] = isFile ? entry.text : entry.path;
      }
      row.append(Object.assign(document.createElement("span"), { textContent: isFile ? entry.name : `${entry.name}/` }));
      if (isFile) row.append(Object.assign(document.createElement("small"), { textContent: size(entry.bytes) }));
      const item = document.createElement("li");
      item.append(row);
      return item;
    });
    if (!rows.length) {
      const item = document.createElement("li");
      item.append(Object.assign(document.createElement("span"), { textContent: "Nothing to choose here." }));
      rows.push(item);
    }
    box.querySelector("ul").replaceChildren(...rows);
    box.querySelector('[data-do="take"]').disabled = !shown;
  }

  // Up and down go along the list, Backspace to the folder above.
  function move(event) {
    const rows = [...dialog().querySelectorAll("ul button")];
    const place = rows.indexOf(document.activeElement);
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      rows[Math.max(0, place + (event.key === "ArrowDown" ? 1 : -1))]?.focus();
    } else if (event.key === "Backspace" && event.target.tagName !== "INPUT" && shown?.above.length > 1) {
      event.preventDefault();
      open(shown.above[shown.above.length - 2].path);
    }
  }

  // Write the path as if it had been typed; where a field takes one a line, it is one more.
  function take(text) {
    const box = input();
    const several = box.placeholder === "one a line" && box.value.trim();
    const prototype = box.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    const value = several ? `${box.value.trimEnd()}\n${text || "."}` : text || ".";
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(box, value);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    dialog().close();
    setTimeout(() => box.dispatchEvent(new FocusEvent("blur")), 50); // Gradio tells the server when a field is left
  }
})();
