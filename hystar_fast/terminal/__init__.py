"""Everything that is printed: names as they are, plain tables, a line every five seconds, and a log file."""
