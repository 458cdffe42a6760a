"""What a run leaves behind for people: results.json, the table, logs."""
