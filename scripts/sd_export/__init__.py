"""Parts of `export_sd.py`: where pipelines come from, how their parts are exported, checked and written."""
