"""What the page's own script asks for: curves, how a run stands, folders, model files; and what it sends: pictures."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from typing import Annotated

import fastapi
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from gui.places import Places
from gui.server import browsing, uploads
from gui.server.uploads import UploadRefused
from gui.tabs import live
from gui.views import charts, machine, results, runs, thumbnails
from gui.views.history import SMOOTHING
from gui.views.monitor import Watch

PLOTLY = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
A_YEAR = {"cache-control": "private, max-age=31536000, immutable"}  # its address has its version
FRESH = {"cache-control": "no-store"}
Several = Annotated[Sequence[str], fastapi.Query()]


def add(server: fastapi.FastAPI, places: Places, watch: Watch) -> None:
    """Add them to a server, before the page is mounted there. Runs are those of the picker, and no others."""
    readings = machine.Readings()

    @server.get("/live/plotly.min.js")
    def plotly() -> Response:
        with importlib.resources.as_file(PLOTLY) as path:
            return FileResponse(path, media_type="text/javascript", headers=A_YEAR)

    @server.get("/live/charts")
    def live_charts(
        run: str, compare: Several = (), axis: str = "steps", smoothing: float = SMOOTHING, have: str = ""
    ) -> Response:
        chosen = runs.chosen(places, run)
        if chosen is None:
            return JSONResponse({"have": ""}, headers=FRESH)
        others = [other for other in (runs.chosen(places, path) for path in compare) if other is not None]
        drawn = runs.curves(places, watch, chosen, others)
        news = charts.news(drawn, charts.as_asked(axis, smoothing), have)
        return JSONResponse(news | {"active": watch.look(chosen).active}, headers=FRESH)

    @server.get("/live/page")
    def live_page(run: str = "", have: str = "{}", whole: bool = False) -> Response:
        try:
            shown = json.loads(have)
        except ValueError:
            shown = {}
        news = live.update(places, watch, run, shown if isinstance(shown, dict) else {}, whole=whole)
        return JSONResponse(news, headers=FRESH)

    @server.get("/live/machine")
    def live_machine(run: str = "") -> Response:
        chosen = runs.chosen(places, run)
        return JSONResponse(readings.told(chosen.path if chosen is not None else places.home), headers=FRESH)

    @server.get("/live/sample")
    def sample(run: str, path: str, small: bool = False) -> Response:
        chosen = runs.chosen(places, run)
        picture = thumbnails.confined(chosen, path) if chosen is not None else None
        if picture is not None and small:
            picture = thumbnails.small(picture, places.thumbnails)
        if picture is None:
            return Response("There is no such picture.", status_code=404, headers=FRESH)
        return FileResponse(picture, headers=A_YEAR)  # its address has its stamp

    @server.get("/browse")
    def browse(path: str = "") -> Response:
        try:
            return JSONResponse(browsing.listing(places, path).as_json(), headers=FRESH)
        except OSError as error:
            return JSONResponse({"refused": f"It cannot be read: {error.strerror}."}, status_code=403, headers=FRESH)

    @server.post("/datasets/file")
    async def add_to_dataset(request: fastapi.Request, dataset: str, file: str) -> Response:
        content = await request.body()  # bounded by the guard around the server
        try:
            await run_in_threadpool(uploads.keep, places, dataset, file, content)
        except UploadRefused as refusal:
            return JSONResponse({"refused": str(refusal)}, status_code=409, headers=FRESH)
        except OSError as error:
            return JSONResponse({"refused": f"{file} cannot be written: {error}"}, status_code=507, headers=FRESH)
        return JSONResponse({}, headers=FRESH)

    @server.get("/results/file")
    def model_file(run: str, name: str) -> Response:
        chosen = runs.chosen(places, run)
        path = results.model_file(chosen, name) if chosen is not None else None
        if path is None:
            return Response("There is no such model file.", status_code=404, headers=FRESH)
        return FileResponse(path, filename=path.name, media_type="application/octet-stream", headers=FRESH)
