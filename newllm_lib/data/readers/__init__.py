"""Where records come from: a class for each kind of source, with a common base in `base`."""
