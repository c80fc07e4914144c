// The Dataset tab: pictures dropped onto it are sent to the server, arrow keys go from picture to picture, and tags are
// completed while they are typed (the server writes those of the dataset into the summary, most frequent first).
(() => {
  const find = (id) => document.getElementById(id);

  // --- dropping --------------------------------------------------------------------------------------------------

  const AT_ONCE = 3; // files on their way

  // The files of what was dropped, those in folders too.
  async function filesOf(items) {
    const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const found = [];
    async function walk(entry) {
      if (entry.isFile) found.push(await new Promise((done, failed) => entry.file(done, failed)));
      else {
        const reader = entry.createReader();
        for (;;) {
          const some = await new Promise((done, failed) => reader.readEntries(done, failed));
          if (!some.length) break;
          for (const inner of some) await walk(inner);
        }
      }
    }
    for (const entry of entries) await walk(entry);
    return found;
  }

  async function send(files) {
    const zone = find("dataset-drop-zone");
    const told = zone.querySelector(".told");
    const dataset = find("dataset-drop-name").value.trim();
    const waiting = [...files];
    const refused = [];
    let done = 0;
    if (!waiting.length) return;
    const tell = (words) => (told.textContent = words);
    async function worker() {
      for (let file = waiting.shift(); file; file = waiting.shift()) {
        try {
          const query = new URLSearchParams({ dataset, file: file.name });
          const answer = await fetch(`datasets/file?${query}`, { method: "POST", body: file });
          if (answer.ok) done += 1;
          else refused.push((await answer.json().catch(() => ({}))).refused || `${file.name}: ${answer.statusText}`);
        } catch {
          refused.push(`${file.name} did not arrive.`);
        }
        tell(`${done} of ${files.length} files arrived …`);
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    const more = refused.length > 5 ? ` And ${refused.length - 5} more.` : "";
    const count = `${done} of ${files.length} files arrived.`;
    tell(refused.length ? `${count} Left out: ${refused.slice(0, 5).join(" ")}${more}` : count);
    if (done) window.rekindleArrived?.(dataset);
  }

  const isOverTab = () => find("dataset-drop-zone")?.offsetParent;
  document.addEventListener("dragover", (event) => {
    if (!isOverTab() || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // so that the drop comes here, and the browser does not open the file
    find("dataset-drop-zone").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) find("dataset-drop-zone")?.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    if (!isOverTab() || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    find("dataset-drop-zone").classList.remove("over");
    const plain = [...event.dataTransfer.files];
    const found = await filesOf(event.dataTransfer.items);
    send(found.length ? found : plain);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches?.('#dataset-drop-zone input[type="file"]')) send([...event.target.files]);
  });

  // --- from picture to picture -----------------------------------------------------------------------------------

  const TYPING = 'input:not([type="checkbox"]), textarea, select, dialog, [role="tab"], [role="listbox"], [role="slider"]';
  document.addEventListener("keydown", (event) => {
    const gallery = find("dataset-gallery");
    if (!gallery?.offsetParent) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#dataset-caption")) {
      event.preventDefault();
      find("dataset-save-next")?.click();
      return;
    }
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.target.closest(TYPING)) return;
    const pictures = [...gallery.querySelectorAll("button.thumbnail-item")];
    const here = pictures.findIndex((one) => one.classList.contains("selected"));
    const next = pictures[here < 0 ? 0 : here + by];
    event.preventDefault();
    if (next) {
      next.click();
      next.focus();
    } else find(by > 0 ? "dataset-on" : "dataset-back")?.click();
  });

  // --- tags ------------------------------------------------------------------------------------------------------

  const MOST = 8;
  const FIELDS = "#dataset-caption, #dataset-tag, #dataset-old, #dataset-new";
  let offered = null; // { field, items, place, from }

  const known = () => document.querySelector("#dataset-summary [data-tags]")?.dataset;

  // What is being written of a tag: from the separator before the cursor on; in the caption only.
  function begun(field) {
    const { separator = "," } = known() || {};
    const before = field.value.slice(0, field.selectionStart);
    const from = field.closest("#dataset-caption") ? Math.max(before.lastIndexOf(separator), before.lastIndexOf("\n")) + 1 : 0;
    return { from, word: before.slice(from).trimStart() };
  }

  function offer(field) {
    close();
    const told = known();
    const { from, word } = begun(field);
    if (!told || !word) return;
    const wanted = word.toLowerCase();
    const all = JSON.parse(told.tags).filter((tag) => tag !== word);
    const found = [
      ...all.filter((tag) => tag.toLowerCase().startsWith(wanted)),
      ...all.filter((tag) => !tag.toLowerCase().startsWith(wanted) && tag.toLowerCase().includes(wanted)),
    ].slice(0, MOST);
    if (!found.length) return;
    const list = Object.assign(document.createElement("ul"), { id: "tags-offered", className: "tags-offered" });
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Tags of the dataset");
    found.forEach((tag, place) => {
      const item = Object.assign(document.createElement("li"), { id: `tag-offered-${place}`, textContent: tag });
      item.setAttribute("role", "option");
      list.append(item);
    });
    field.parentElement.style.position = "relative";
    field.after(list);
    offered = { field, items: [...list.children], place: -1, from };
    field.setAttribute("aria-controls", list.id);
  }

  function close() {
    if (!offered) return;
    find("tags-offered")?.remove();
    offered.field.removeAttribute("aria-activedescendant");
    offered.field.removeAttribute("aria-controls");
    offered = null;
  }

  function take(item) {
    const { field, from } = offered;
    const space = from && field.value[from - 1] !== "\n" ? " " : "";
    const begin = `${field.value.slice(0, from)}${space}${item.textContent}`;
    const value = begin + field.value.slice(field.selectionStart);
    const prototype = field.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(field, value);
    field.setSelectionRange(begin.length, begin.length);
    field.dispatchEvent(new Event("input", { bubbles: true }));
    close();
  }

  document.addEventListener("input", (event) => {
    if (event.isTrusted && event.target.closest?.(FIELDS)) offer(event.target);
  });
  document.addEventListener("focusout", close);
  document.addEventListener("mousedown", (event) => {
    const item = event.target.closest?.("#tags-offered li");
    if (!item) return;
    event.preventDefault(); // the field keeps the focus
    take(item);
  });
  document.addEventListener(
    "keydown",
    (event) => {
      if (!offered || event.target !== offered.field) return;
      const { items } = offered;
      if (event.key === "Escape") close();
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const last = items.length - 1;
        if (event.key === "ArrowDown") offered.place = offered.place < last ? offered.place + 1 : 0;
        else offered.place = offered.place > 0 ? offered.place - 1 : last;
        items.forEach((item, place) => item.setAttribute("aria-selected", String(place === offered.place)));
        offered.field.setAttribute("aria-activedescendant", items[offered.place].id);
      } else if (offered.place >= 0 && ["Enter", "Tab"].includes(event.key) && !event.ctrlKey) take(items[offered.place]);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    true,
  );
})();
