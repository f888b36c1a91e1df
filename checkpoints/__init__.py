"""What was trained, written and read: this project's files and those of other tools."""
