// Charts that are updated in place, and rest while nobody sees them; the page's title; a notification at the end.
// The server has the curves (live/charts): all of them at first, from then on only what is new.
(() => {
  const LOOK = 1000; // ms between two looks whether there is something to do
  const PULSE = 2000; // ms between two drawings at least,
  const SHARE = 40; // and so many times what the last one took, so that charts take a small share of a core
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
      script.src = find("loss-chart").querySelector("[data-plotly]").dataset.plotly;
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
      figure.dirty = false;
      figure.div = div;
      window.rekindleCharts.drawn += 1;
      next = Math.max(next, performance.now() + Math.max(PULSE, SHARE * (performance.now() - started)));
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

  const watched = () => document.querySelector("#run-status [data-run]")?.dataset.run || "";
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

  // --- the title, and the end of a run ---------------------------------------------------------------------------

  let before = { run: "", condition: "" }; // of the run that is watched

  function tell(told) {
    if (!told.run) return;
    const percent = ACTIVE.includes(told.condition) && told.percent !== "" ? `${told.percent} % · ` : "";
    const ended = ENDED.includes(told.condition) ? `${told.words} · ` : "";
    document.title = `${percent || ended}${told.name} · Rekindle`;
    const over = before.run === told.run && ACTIVE.includes(before.condition) && ENDED.includes(told.condition);
    before = { run: told.run, condition: told.condition };
    if (over && view.tell && window.Notification?.permission === "granted") {
      new Notification(`${told.name}: ${told.words}`, { body: told.line, tag: told.run });
    }
  }

  let asked = 0;
  let opened = false; // whether the page shows by now what it was left with
  async function follow() {
    const line = document.querySelector("#run-status [data-run]");
    if (!document.hidden) {
      const tab = document.querySelector('[role="tab"][aria-selected="true"]')?.id.replace(/-button$/, "") || view.tab;
      const run = line?.dataset.run || view.run;
      if (opened && (tab !== view.tab || run !== view.run)) keep({ tab, run });
      if (line) tell(line.dataset);
    } else if (line && performance.now() - asked > HIDDEN_PULSE) {
      asked = performance.now();
      const answer = await fetch(`live/run?${new URLSearchParams({ run: line.dataset.run })}`).catch(() => null);
      if (answer?.ok) tell(await answer.json());
    }
  }

  setInterval(() => {
    look();
    follow();
  }, LOOK);
  document.addEventListener("visibilitychange", look);
  document.addEventListener("scroll", () => performance.now() > next - PULSE && look(), { passive: true, capture: true });

  // --- for the widgets -------------------------------------------------------------------------------------------

  window.rekindleCharts = {
    drawn: 0,
    view,
    set: keep,
    compare: (runs) => {
      compared = runs;
      next = 0;
      look();
    },
    redraw,
    opened: () => (opened = true),
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
