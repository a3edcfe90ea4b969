"""The data sets: the embedded emoji styles and the layouts of the public ones."""
