// The run in one line, at the top of the window, while its bar is scrolled out of sight; charts.js has the words.
(() => {
  const find = (id) => document.getElementById(id);
  const ACTIVE = ["starting", "running", "stopping"];
  let shown = {};

  function make() {
    const bar = Object.assign(document.createElement("div"), { id: "slim-bar", hidden: true });
    bar.setAttribute("role", "region");
    bar.setAttribute("aria-label", "The run in one line");
    bar.innerHTML =
      '<b></b><span></span><button type="button" class="small" data-press="stop-training">Stop training</button>' +
      '<button type="button" class="small" data-press="start-training">Start training</button>' +
      '<button type="button" class="small" data-press="">To the top</button>';
    bar.addEventListener("click", (event) => {
      const press = event.target.closest("[data-press]")?.dataset.press;
      if (press === undefined) return;
      scrollTo({ top: 0 }); // where it says what came of it
      find(press)?.click();
    });
    (document.querySelector(".gradio-container") || document.body).append(bar); // whose colours it has
    return bar;
  }

  function show() {
    const bar = find("slim-bar") || make();
    const runs = ACTIVE.includes(shown.condition);
    bar.querySelector("b").textContent = shown.name || "No run yet";
    const percent = runs && shown.percent !== "" ? ` · ${shown.percent} %` : "";
    bar.querySelector("span").textContent = shown.name ? `${shown.words || ""}${percent}` : "";
    bar.querySelector('[data-press="stop-training"]').hidden = !runs || find("stop-training")?.disabled;
    bar.querySelector('[data-press="start-training"]').hidden = runs;
  }

  window.rekindleSlim = (told) => {
    shown = told;
    show();
  };

  let watched = null;
  const observer = new IntersectionObserver(([entry]) => {
    show();
    find("slim-bar").hidden = entry.isIntersecting;
  });
  window.rekindleDressing.push(() => {
    const bar = find("run-bar");
    if (!bar || bar === watched) return;
    observer.disconnect();
    observer.observe(bar);
    watched = bar;
  });
})();
