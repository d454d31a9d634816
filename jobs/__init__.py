"""Jobs: arguments, one runtime call, an exit code."""
