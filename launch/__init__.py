"""Starting runs on several hosts."""
