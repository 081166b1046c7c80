"""Speed and memory of medserve, measured side by side with what a user would take instead."""
