"""The browser interface. It starts the trainer as a process of its own and reads run folders; no torch here."""
