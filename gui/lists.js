// Lists of runs and results: what does not match the filter is hidden; paths are copied; this machine in the bar.
(() => {
  // What does not have all the words is hidden: when they change, and when the table is another (see runs_tab.py).
  window.rekindleFilter = () => {
    const field = document.querySelector("#runs-filter input, #runs-filter textarea");
    const wanted = (field?.value || "").toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll("#runs-table tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  };
  document.addEventListener("input", (event) => {
    if (event.target.closest?.("#runs-filter")) window.rekindleFilter();
  });

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Without https the clipboard is closed to scripts; what is selected can still be copied.
      const field = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      return done;
    }
  }

  document.addEventListener(
    "click",
    async (event) => {
      const button = event.target.closest?.('button[data-action="copy"]');
      if (!button) return;
      event.stopPropagation();
      const words = button.textContent;
      button.textContent = (await copied(button.dataset.value)) ? "Copied" : button.dataset.value;
      setTimeout(() => (button.textContent = words), 2000);
    },
    true,
  );

  const MACHINE_PULSE = 4000; // ms
  let waiting = false;
  async function machine() {
    const line = document.querySelector("#run-machine .machine");
    if (document.hidden || waiting || !line?.offsetParent) return;
    waiting = true;
    try {
      const run = document.querySelector("#run-watched [data-run]")?.dataset.run || "";
      const answer = await fetch(`live/machine?${new URLSearchParams({ run })}`);
      if (!answer.ok) return;
      const parts = (await answer.json()).map((told) => {
        const part = document.createElement("span");
        part.append(Object.assign(document.createElement("b"), { textContent: told.name }), ` ${told.words}`);
        return part;
      });
      line.replaceChildren(...parts);
    } catch {
      // the server is away for a moment
    } finally {
      waiting = false;
    }
  }
  setInterval(machine, MACHINE_PULSE);
  document.addEventListener("visibilitychange", machine);
  setTimeout(machine, 1500);
})();
