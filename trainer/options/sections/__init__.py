"""One file a section: a section is a heading of the form and a table of the TOML."""
