"""Starts the browser interface; `python app.py --help` says how."""

from gui.app import main

if __name__ == "__main__":
    raise SystemExit(main())
