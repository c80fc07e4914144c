"""Presets of kohya_ss and sd-scripts: what each key becomes here. No torch here."""
