"""Everything that is printed: names as they are, plain tables, a line every ten seconds, and a log file."""
