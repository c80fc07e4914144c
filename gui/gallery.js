// Samples in full size, one after another: arrow keys go on to other prompts (left, right) and steps (up, down).
(() => {
  let shown = null; // the button of the picture that is shown

  function make() {
    const dialog = document.createElement("dialog");
    dialog.id = "lightbox";
    dialog.setAttribute("aria-label", "Sample in full size");
    dialog.innerHTML =
      '<img alt=""><p aria-live="polite"></p>' +
      '<button type="button" class="small" data-go="left">← prompt</button>' +
      '<button type="button" class="small" data-go="right">prompt →</button>' +
      '<button type="button" class="small" data-go="up">↑ newer step</button>' +
      '<button type="button" class="small" data-go="down">↓ older step</button>' +
      '<button type="button" class="small" data-go="close">Close</button>';
    // Inside the page's own container, whose colours it has.
    (document.querySelector(".gradio-container") || document.body).append(dialog);
    dialog.addEventListener("click", (event) => {
      const go = event.target.closest("[data-go]")?.dataset.go;
      if (go === "close" || event.target === dialog) dialog.close();
      else if (go) move(go);
    });
    dialog.addEventListener("keydown", (event) => {
      const go = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
      if (!go) return;
      event.preventDefault();
      move(go);
    });
    dialog.addEventListener("close", () => {
      if (shown?.isConnected) shown.focus();
    });
    return dialog;
  }

  // The next picture in a direction; cells without one are passed over.
  function move(go) {
    if (!shown?.isConnected) return;
    const cell = shown.closest("td");
    const grid = [...cell.closest("tbody").rows].filter((row) => !row.classList.contains("resumed"));
    let [row, column] = [grid.indexOf(cell.parentElement), cell.cellIndex];
    for (;;) {
      row += { up: -1, down: 1 }[go] || 0;
      column += { left: -1, right: 1 }[go] || 0;
      const next = grid[row]?.cells[column];
      if (!next) return;
      const button = next.querySelector("button.picture");
      if (button) return show(button);
    }
  }

  function show(button) {
    const dialog = document.getElementById("lightbox") || make();
    shown = button;
    dialog.querySelector("img").src = button.dataset.whole;
    dialog.querySelector("img").alt = button.title;
    dialog.querySelector("p").textContent = button.dataset.caption;
    if (!dialog.open) dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.picture[data-whole]");
    if (button) show(button);
  });

  // A file that is no picture says so instead of a broken sign.
  document.addEventListener(
    "error",
    (event) => {
      if (event.target.matches?.("button.picture img")) event.target.classList.add("missing");
    },
    true,
  );
})();
