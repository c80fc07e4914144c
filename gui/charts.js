// Charts that are updated in place, and rest while nobody sees them; the page's title; a notification at the end.
// The server has the curves (live/charts): all of them at first, from then on only what is new.
(() => {
  const LOOK = 400; // ms between two looks whether there is something to do
  const LIVE_PULSE = 1000; // ms between two looks at a run that goes on,
  const IDLE_PULSE = 3000; // and at one that does not
  const NEWS_PULSE = 5000; // ms until Gradio is called again for the same news
  const PULSE = 4000; // ms between two drawings at least,
  const SHARE = 30; // and so many times what the last one took, so that charts take a small share of a core,
  const LONGEST = 15000; // but not longer than that on a slow machine
  const MOST = 5000; // points of a line, after which all of it is asked for again, thinned out
  const HIDDEN_PULSE = 15000; // ms between two looks at how the run stands while the page is hidden
  const KEPT = "rekindle.view";
  const ACTIVE = ["starting", "running", "stopping"];
  const ENDED = ["finished", "failed", "stopped", "interrupted", "refused"];
  const find = (id) => document.getElementById(id);

  const figures = new Map(); // id of a chart -> { data, layout, dirty }
  let compared = []; // runs that are drawn besides the watched one
  let have = "";
  let shown = ""; // what the figures were asked for
  let next = 0; // when the next drawing may be
  let busy = false;
  let loading = null;

  // --- what this browser remembers -------------------------------------------------------------------------------

  const view = { axis: "steps", smoothing: 0.95, log: false, clip: false, run: "", tab: "", tell: false };
  try {
    Object.assign(view, JSON.parse(localStorage.getItem(KEPT) || "{}"));
  } catch {
    // a browser that keeps nothing
  }

  function keep(changes) {
    Object.assign(view, changes);
    try {
      localStorage.setItem(KEPT, JSON.stringify(view));
    } catch {
      // likewise
    }
    next = 0;
    look();
  }

  // --- drawing ---------------------------------------------------------------------------------------------------

  function plotly() {
    loading ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = document.querySelector("[data-plotly]").dataset.plotly;
      script.onload = resolve;
      script.onerror = () => {
        loading = null;
        reject(new Error("Plotly did not load"));
      };
      document.head.append(script);
    });
    return loading;
  }

  function inSight(element) {
    if (!element || !element.offsetParent) return false;
    const box = element.getBoundingClientRect();
    return box.bottom > -100 && box.top < innerHeight + 100;
  }

  const place = (id) => find(id)?.querySelector(".chart");

  // Lowest and highest value that count when outliers are clipped: all but one in a hundred at either end.
  function bounds(data) {
    const values = [];
    for (const trace of data) {
      if (trace.mode !== "markers" && trace.visible !== "legendonly") for (const value of trace.y) values.push(value);
    }
    if (values.length < 20) return null;
    values.sort((one, other) => one - other);
    const low = values[Math.floor(values.length * 0.01)];
    const high = values[Math.ceil(values.length * 0.99) - 1];
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05;
    return [low - margin, high + margin];
  }

  function layoutOf(id, figure) {
    if (id !== "loss-chart") return figure.layout;
    const yaxis = { ...figure.layout.yaxis, uirevision: `${figure.layout.uirevision} ${view.log} ${view.clip}` };
    if (view.log) yaxis.type = "log";
    const range = view.clip ? bounds(figure.data) : null;
    if (range) {
      const positive = figure.data.flatMap((trace) => trace.y).filter((value) => value > 0);
      const least = positive.reduce((one, other) => Math.min(one, other), Infinity);
      yaxis.range = view.log ? [Math.log10(Math.max(range[0], least)), Math.log10(range[1])] : range;
      yaxis.autorange = false;
    }
    return { ...figure.layout, yaxis };
  }

  async function draw() {
    for (const [id, figure] of figures) {
      const div = place(id);
      if (!div || !inSight(div) || !(figure.dirty || figure.div !== div)) continue;
      const layout = { ...layoutOf(id, figure), datarevision: Math.random(), width: div.clientWidth };
      const started = performance.now();
      await Plotly.react(div, figure.data, layout, { displaylogo: false, responsive: true });
      const taken = performance.now() - started;
      figure.dirty = false;
      figure.div = div;
      window.rekindleCharts.drawn += 1;
      next = Math.max(next, performance.now() + Math.max(PULSE, Math.min(LONGEST, SHARE * taken)));
    }
  }

  const still = new Map(); // charts that a widget has the figure of, and not the run's news: id -> { data, layout, dirty }

  async function drawStill() {
    for (const [id, figure] of still) {
      const div = place(id);
      if (div) div.hidden = false;
      if (document.hidden || !inSight(div) || !(figure.dirty || figure.div !== div)) continue;
      Object.assign(figure, { dirty: false, div });
      try {
        await plotly();
        const layout = { ...figure.layout, datarevision: Math.random(), width: div.clientWidth };
        await Plotly.react(div, figure.data, layout, { displaylogo: false, responsive: true });
        window.rekindleCharts.drawn += 1;
      } catch {
        figure.dirty = true; // the server is away for a moment
      }
    }
  }

  function take(told) {
    have = told.have;
    for (const [id, news] of Object.entries(told.charts || {})) {
      const figure = figures.get(id);
      if (told.whole || !figure) {
        figures.set(id, { ...news, dirty: true });
        continue;
      }
      const known = new Map(figure.data.map((trace) => [trace.uid, trace]));
      for (const trace of news.data) {
        const old = known.get(trace.uid);
        if (!old) figure.data.push(trace);
        else if (!trace.more) Object.assign(old, trace);
        else {
          old.x = old.x.concat(trace.x);
          old.y = old.y.concat(trace.y);
          if (old.x.length > MOST) have = "";
        }
      }
      figure.dirty = true;
    }
  }

  const watched = () => document.querySelector("#run-watched [data-run]")?.dataset.run || "";
  const waiting = ([id, figure]) => inSight(place(id)) && (figure.dirty || figure.div !== place(id));

  async function look() {
    if (document.hidden || busy || !find("loss-chart")?.offsetParent) return;
    if (performance.now() < next && ![...figures].some(waiting)) return;
    busy = true;
    try {
      const run = watched();
      const query = new URLSearchParams({ run, axis: view.axis, smoothing: view.smoothing });
      for (const other of compared) query.append("compare", other);
      if (shown !== query.toString()) [shown, have] = [query.toString(), ""];
      if (performance.now() >= next) {
        next = performance.now() + PULSE;
        query.append("have", have);
        window.rekindleCharts.asked += 1;
        const [answer] = await Promise.all([fetch(`live/charts?${query}`), plotly()]);
        if (answer.ok) take(await answer.json());
      }
      if (window.Plotly && !document.hidden) await draw();
    } catch {
      next = performance.now() + PULSE; // the server is away for a moment, as when it starts again
    } finally {
      busy = false;
    }
  }

  function redraw(changes) {
    for (const figure of figures.values()) figure.dirty = true;
    keep(changes);
  }

  // --- lines, numbers and log ------------------------------------------------------------------------------------

  let parts = {}; // what is shown of them, as the server calls it
  let news = null; // stands for what Gradio was last called to show,
  let again = 0; // and when it is called once more where it does not show that
  let due = 0;
  let asking = false;
  let before = { run: "", condition: "" };

  async function update() {
    const run = watched();
    if (asking || (run === before.run && performance.now() < due)) return;
    asking = true;
    try {
      const whole = Boolean(find("loss-chart")?.offsetParent) && !document.hidden;
      const query = new URLSearchParams({ run, whole, have: JSON.stringify(parts) });
      const answer = await fetch(`live/page?${query}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const told = await answer.json();
      if (run !== watched()) return; // another run was chosen meanwhile, which is asked for next
      due = performance.now() + (document.hidden ? HIDDEN_PULSE : told.active ? LIVE_PULSE : IDLE_PULSE);
      for (const [id, html] of Object.entries(told.parts)) {
        const place = find(id)?.querySelector(".live");
        if (place) place.innerHTML = html;
        else delete told.have[id]; // not there yet
      }
      parts = told.have;
      tell({ ...told.short, run });
      const shown = Number(document.querySelector("#run-watched [data-run]")?.dataset.news);
      if (opened && run === watched() && told.news !== shown && (told.news !== news || performance.now() > again)) {
        news = told.news;
        again = performance.now() + NEWS_PULSE;
        window.rekindleNews?.();
      }
    } catch {
      due = performance.now() + IDLE_PULSE; // the server is away for a moment, as when it starts again
    } finally {
      asking = false;
    }
  }

  // --- the title, and the end of a run ---------------------------------------------------------------------------

  function tell(told) {
    const over = before.run === told.run && ACTIVE.includes(before.condition) && ENDED.includes(told.condition);
    before = { run: told.run, condition: told.condition };
    window.rekindleSlim(told);
    if (!told.name) return;
    const percent = ACTIVE.includes(told.condition) && told.percent !== "" ? `${told.percent} % · ` : "";
    const ended = ENDED.includes(told.condition) ? `${told.words} · ` : "";
    const title = `${percent || ended}${told.name} · Rekindle`;
    if (document.title !== title) document.title = title;
    if (over && view.tell && window.Notification?.permission === "granted") {
      new Notification(`${told.name}: ${told.words}`, { body: told.line, tag: told.run });
    }
  }

  let opened = false; // whether the page shows by now what it was left with
  function remember() {
    const tab = document.querySelector('[role="tab"][aria-selected="true"]')?.id.replace(/-button$/, "") || view.tab;
    const run = watched() || view.run;
    if (opened && (tab !== view.tab || run !== view.run)) {
      due = 0;
      keep({ tab, run });
    }
  }

  setInterval(() => {
    remember();
    update();
    look();
    drawStill();
  }, LOOK);
  document.addEventListener("visibilitychange", () => {
    due = 0;
    update();
    look();
  });
  let resting = 0;
  addEventListener("scroll", () => {
    clearTimeout(resting);
    resting = setTimeout(look, 200);
  }, { passive: true, capture: true });

  // --- for the widgets -------------------------------------------------------------------------------------------

  window.rekindleCharts = {
    drawn: 0, // how often a chart was drawn,
    asked: 0, // and news of the curves asked for
    view,
    set: keep,
    compare: (runs) => {
      compared = runs;
      next = 0;
      look();
    },
    redraw,
    show: (id, figure) => {
      const div = place(id);
      if (figure) still.set(id, { ...figure, dirty: true });
      else still.delete(id);
      if (!figure && div) div.hidden = true;
      drawStill();
    },
    opened: () => {
      opened = true;
      due = 0;
      update();
    },
    whole: () => {
      for (const id of figures.keys()) {
        const div = place(id);
        const axes = Object.keys(div?._fullLayout || {}).filter((name) => /^[xy]axis\d*$/.test(name));
        if (axes.length) Plotly.relayout(div, Object.fromEntries(axes.map((name) => [`${name}.autorange`, true])));
      }
    },
    permission: async (wanted) => {
      const may = wanted && window.Notification ? await Notification.requestPermission() : "denied";
      keep({ tell: wanted && may === "granted" });
      return view.tell;
    },
  };
})();
